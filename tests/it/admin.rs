//! The admin port.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    fake::soon,
    leases::grant,
    observed::Observed,
    program::{Program, get, request},
    raw::{Raw, SERVICE, grpc},
    server::{Running, config},
    sessions::batch_create,
};

#[tokio::test]
async fn the_admin_port_reports_live_ready_and_writable() {
    let server = Running::start().await;
    for (path, body) in [("/live", "live\n"), ("/ready", "ready\n"), ("/writable", "writable\n")] {
        let page = get(server.admin, path).await;
        assert_eq!((page.status, page.body.as_str()), (200, body));
        let head = request(server.admin, "HEAD", path).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert!(head.head.contains(&format!("content-length: {}", body.len())), "{}", head.head);
    }
    for path in ["/", "/metrics/", "/nope", "/live?x/../ready/"] {
        let expected = if path.starts_with("/live?") { 200 } else { 404 };
        assert_eq!(get(server.admin, path).await.status, expected, "{path}");
    }
    assert!(get(server.admin, "/nope").await.body.contains("/metrics"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(request(server.admin, method, "/live").await.status, 405, "{method}");
    }
}

#[tokio::test]
async fn idle_connections_do_not_delay_probes() {
    let server = Running::start().await;
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut socket = soon(TcpStream::connect(server.admin)).await.unwrap();
        // A third have sent nothing, a third part of a request, and a third a whole request.
        let said = ["", "GET /live HTT", "GET /live HTTP/1.1\r\nhost: admin\r\n\r\n"][n % 3];
        soon(socket.write_all(said.as_bytes())).await.unwrap();
        idle.push(socket);
    }
    let began = Instant::now();
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(get(server.admin, path).await.status, 200, "{path}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let program = Program::start(&[]).await;
    let client = program.sessions();
    let series = |name: &str, method: &str, code: &str| {
        let kind = if method == "Subscribe" { "server_stream" } else { "unary" };
        let code = if code.is_empty() { String::new() } else { format!(",grpc_code=\"{code}\"") };
        let labels =
            format!("grpc_type=\"{kind}\",grpc_service=\"sessiond.v1.SessionService\",grpc_method=\"{method}\"");
        format!("{name}{{{labels}{code}}}")
    };
    batch_create(&client, &[1, 2, 3]).await;
    let forgotten = sessiond::proto::HasSessionRequest { session_id: None, auth_key_id: 0 };
    client.clone().has_session(forgotten).await.unwrap_err();
    let observed = Observed::now(&client).await;
    for (name, method, code, count) in [
        ("grpc_server_started_total", "BatchCreateSessions", "", 1),
        ("grpc_server_handled_total", "BatchCreateSessions", "OK", 1),
        ("grpc_server_handling_seconds_count", "BatchCreateSessions", "", 1),
        ("grpc_server_handled_total", "HasSession", "OK", 0),
        ("grpc_server_handled_total", "HasSession", "InvalidArgument", 1),
        ("grpc_server_started_total", "Subscribe", "", 1),
        ("grpc_server_handled_total", "Subscribe", "OK", 0),
    ] {
        assert_eq!(program.metric(&series(name, method, code)).await, count, "{name} {method} {code}");
    }
    for (reason, count) in [("SESSION_ID_MISSING", 1), ("TOO_MANY_SESSIONS", 0)] {
        assert_eq!(program.metric(&format!("sessiond_refused_total{{reason=\"{reason}\"}}")).await, count, "{reason}");
    }
    // Changes are counted when they are published, which happens after their call was answered.
    program.metric_comes_to("sessiond_changes_total{type=\"created\",reason=\"none\"}", 3).await;
    assert!(program.metric("sessiond_connections").await >= 1);
    drop(observed);
    program.metric_comes_to(&series("grpc_server_handled_total", "Subscribe", "Canceled"), 1).await;
    program.metric_comes_to("sessiond_observers_behind", 0).await;
}

#[tokio::test]
async fn metrics_report_current_values() {
    let program = Program::start(&[]).await;
    let client = program.sessions();
    let leases = crate::server::Leases::new(
        tonic::transport::Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy(),
    );
    let observed = Observed::now(&client).await;
    batch_create(&client, &[1, 2, 3]).await;
    grant(&leases, Duration::from_secs(60)).await;
    program.metric_comes_to("sessiond_log_retained_events", 3).await;
    for (name, value) in [
        ("sessions", 3),
        ("leases", 1),
        ("observers", 1),
        ("storage_up", 1),
        ("storage_writable{cause=\"disk_full\"}", 1),
    ] {
        assert_eq!(program.metric(&format!("sessiond_{name}")).await, value, "{name}");
    }
    assert!(program.metric("sessiond_log_retained_bytes").await > 0);
    assert!(program.metric("process_resident_memory_bytes").await > 1 << 20);
    assert!(program.metric("process_open_fds").await > 3);
    assert_eq!(program.metric("sessiond_observer_resets_total{reason=\"lagged\"}").await, 0);
    drop(observed);
    program.metric_comes_to("sessiond_observers", 0).await;

    let page = get(program.admin, "/metrics").await;
    assert!(page.head.contains("content-type: application/openmetrics-text"), "{}", page.head);
    assert!(page.body.ends_with("# EOF\n"));
    let head = request(program.admin, "HEAD", "/metrics").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn the_session_limit_is_a_metric() {
    let program = Program::start(&["--max-sessions", "1234"]).await;
    assert_eq!(program.metric("sessiond_sessions_limit").await, 1234);
}

#[tokio::test]
async fn storage_waits_are_timed() {
    let folder = tempfile::tempdir().unwrap();
    let storage = format!("file:{}", folder.path().join("registry").display());
    let program = Program::start(&["--storage", &storage]).await;
    let client = program.sessions();
    batch_create(&client, &[1, 2, 3]).await;
    batch_create(&client, &[4]).await;
    let waits = |operation: &str| format!("sessiond_storage_wait_seconds_count{{operation=\"{operation}\"}}");
    assert_eq!(program.metric(&waits("create")).await, 2, "each create waits until it is on disk");
    assert_eq!(program.metric(&waits("destroy")).await, 0);
    for (operation, error) in [("create", "unavailable"), ("has", "broken")] {
        let errors = format!("sessiond_storage_errors_total{{operation=\"{operation}\",error=\"{error}\"}}");
        assert_eq!(program.metric(&errors).await, 0);
    }
}

#[tokio::test]
async fn a_draining_server_is_live_but_not_ready() {
    let server = Running::with(config().drain_timeout(Duration::from_secs(30))).await;
    let mut raw = Raw::connect(server.addr).await;
    // A call without its request message keeps the drain waiting.
    let (response, mut body) = raw.open(grpc(&format!("{SERVICE}/HasSession"))).await;
    raw.arrived().await;
    let admin = server.admin;
    let ended = server.stop();
    soon(async { while get(admin, "/ready").await.status != 503 {} }).await;
    assert_eq!(get(admin, "/ready").await.body, "draining\n");
    assert_eq!(get(admin, "/live").await.status, 200);
    assert_eq!(get(admin, "/metrics").await.status, 200);
    body.send_data(bytes::Bytes::new(), true).unwrap();
    soon(crate::raw::answer(response)).await.unwrap();
    drop(raw);
    soon(ended).await.unwrap().unwrap();
}
