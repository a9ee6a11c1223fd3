//! Limits on connections and calls: each limit ends only what exceeds it, and its error names the flag.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use sessiond::proto::{
    BatchHasSessionsRequest, HasSessionRequest, SubscribeRequest, lease_service_client::LeaseServiceClient,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    cli::{printed, sessiond},
    fake::soon,
    frames::{HEADERS, headers, start},
    leases::{grant, keep_alive},
    observed::Observed,
    program::{Program, run},
    raw::{Raw, SERVICE, answer, framed, grpc},
    server::Sessions,
    sessions::{create, has},
};

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn with_timeout(method: &str, timeout: &str) -> Request<()> {
    let mut request = grpc(&format!("{SERVICE}/{method}"));
    request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

/// Sends only the beginning of a request. Returns how and after what time the call ends.
async fn send_half(raw: &mut Raw, request: Request<()>) -> (Status, Duration) {
    let began = Instant::now();
    let (response, mut body) = raw.open(request).await;
    body.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 10]), false).unwrap();
    (soon(answer(response)).await.unwrap().grpc.unwrap(), began.elapsed())
}

#[tokio::test]
async fn calls_end_at_the_servers_call_timeout_or_the_clients_deadline() {
    let program = Program::start(&["--call-timeout", "500ms"]).await;
    let mut raw = Raw::connect(program.addr).await;
    for method in ["BatchCreateSessions", "Subscribe"] {
        let (status, took) = send_half(&mut raw, grpc(&format!("{SERVICE}/{method}"))).await;
        assert_eq!((status.code(), &*reason(&status)), (Code::DeadlineExceeded, "CALL_TIMEOUT"), "{method}");
        assert!(status.message().contains("--call-timeout") && took >= Duration::from_millis(500), "{took:?} {status}");
        let (status, took) = send_half(&mut raw, with_timeout(method, "100m")).await;
        assert_eq!((status.code(), &*reason(&status)), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"), "{method}");
        assert!(took >= Duration::from_millis(100), "{took:?}");
        // A longer timeout than the server's, and text that is not a timeout, change nothing.
        for timeout in ["99999999H", "soon"] {
            assert_eq!(reason(&send_half(&mut raw, with_timeout(method, timeout)).await.0), "CALL_TIMEOUT");
        }
    }
    // The call timeout does not end streams, but the client's own deadline does.
    let mut observed = Observed::now(&program.sessions()).await;
    let stream = raw.begin(with_timeout("Subscribe", "1S"), framed(&SubscribeRequest::default())).await.unwrap();
    let ended = soon(answer(stream)).await.unwrap().grpc.unwrap();
    assert_eq!(reason(&ended), "DEADLINE_EXCEEDED");
    assert!(create(&program.sessions(), 0, 1).await);
    assert_eq!(observed.events(1).await.len(), 1);
    drop(observed);
    program.metric_comes_to("sessiond_observers", 0).await;
}

#[tokio::test]
async fn a_rate_limited_client_learns_when_to_retry() {
    let program = Program::start(&["--rate-limit", "2", "--rate-burst", "5"]).await;
    let mut raw = Raw::connect(program.addr).await;
    let request = HasSessionRequest { session_id: Some(1), auth_key_id: 0 };
    let mut refused = None;
    for _ in 0..50 {
        let status = raw.call(&format!("{SERVICE}/HasSession"), &request).await.grpc.unwrap();
        if status.code() != Code::Ok {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("50 calls take less than 20 s");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert!(refused.message().contains("--rate-limit"), "{refused}");
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    // Up to twice the time until one more call is allowed: the jitter spreads clients that were refused at the same
    // time.
    assert!(delay > Duration::ZERO && delay <= Duration::from_millis(1002), "{delay:?}");
    // Other connections of the same client share the limit, and health checks do not count.
    let status = program.sessions().has_session(request).await.map(drop).map_err(|status| reason(&status));
    assert!(status == Err("RATE_LIMITED".to_owned()) || status.is_ok());
    for _ in 0..10 {
        assert_eq!(run(sessiond(&format!("http://{}", program.addr), &["health"])).await, printed(0, "SERVING\n"));
    }
    tokio::time::sleep(delay).await;
    assert!(raw.call(&format!("{SERVICE}/HasSession"), &request).await.grpc.unwrap().code() == Code::Ok);
}

#[tokio::test]
async fn rate_limits_never_refuse_keep_alives() {
    let program = Program::start(&["--rate-limit", "1", "--rate-burst", "2"]).await;
    let leases = LeaseServiceClient::connect(format!("http://{}", program.addr)).await.unwrap();
    let lease = grant(&leases, Duration::from_secs(60)).await;
    for _ in 0..50 {
        keep_alive(&leases, lease).await.unwrap();
    }
    // Keep-alives do not count towards the limit, and other calls are still refused.
    assert!(create(&program.sessions(), 0, 1).await);
    let mut client = program.sessions();
    let request = HasSessionRequest { session_id: Some(1), auth_key_id: 0 };
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(client.has_session(request).await.is_err());
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn a_health_watch_alone_does_not_prevent_the_idle_timeout() {
    let program = Program::start(&["--idle-timeout", "500ms"]).await;
    let mut raw = Raw::connect(program.addr).await;
    let watch = framed(&HealthCheckRequest::default());
    let watch = raw.begin(grpc("/grpc.health.v1.Health/Watch"), watch).await.unwrap();
    let ended = soon(answer(watch)).await.unwrap();
    let status = ended.grpc.unwrap();
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "CONNECTION_CLOSING"));
    assert!(status.get_details_retry_info().is_some() && status.message().contains("--idle-timeout"), "{status}");
    soon(raw.ended()).await;
    program.metric_comes_to("sessiond_connections", 0).await;

    // On a connection with another stream, the health watch continues.
    let channel = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
    let observed = Observed::now(&Sessions::new(channel.clone())).await;
    let mut watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(soon(watch.message()).await.unwrap().is_some());
    assert!(tokio::time::timeout(Duration::from_secs(2), watch.message()).await.is_err(), "the watch has ended");
    drop(observed);
    assert_eq!(reason(&soon(watch.message()).await.unwrap_err()), "CONNECTION_CLOSING");
}

#[tokio::test]
async fn the_batch_limit_can_be_lowered() {
    let program = Program::start(&["--max-batch", "3"]).await;
    let mut client = program.sessions();
    let batch = |count| BatchHasSessionsRequest { session_ids: (0..count).collect(), ..Default::default() };
    assert_eq!(client.batch_has_sessions(batch(3)).await.unwrap().into_inner().exists.len(), 3);
    let status = client.batch_has_sessions(batch(4)).await.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::InvalidArgument, "BATCH_TOO_LARGE"));
    assert!(status.message().contains("at most 3") && status.message().contains("--max-batch"), "{status}");
}

#[tokio::test]
async fn incomplete_requests_share_a_limit() {
    let program = Program::start(&["--max-pending-bytes", "100000"]).await;
    let mut raw = Raw::connect(program.addr).await;
    let mut held = Vec::new();
    let mut refused = None;
    let part = [&[0, 0, 0x10, 0, 0][..], &[0; 15_000]].concat();
    while refused.is_none() && held.len() < 20 {
        let (mut response, mut body) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
        body.send_data(part.clone().into(), false).unwrap();
        // The server refuses the request or waits for the rest of it.
        match tokio::time::timeout(Duration::from_millis(300), &mut response).await {
            Ok(answered) => refused = Some(Status::from_header_map(answered.unwrap().headers()).unwrap()),
            Err(_) => held.push((response, body)),
        }
    }
    let refused = refused.expect("the limit is reached");
    assert_eq!(held.len(), 6);
    assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "TOO_MANY_PENDING_BYTES"));
    assert!(refused.message().contains("--max-pending-bytes"), "{refused}");
    assert!(!has(&program.sessions(), 0, 1).await, "small requests are answered");
    drop(held);
    let request = BatchHasSessionsRequest { session_ids: (0..60_000).collect(), ..Default::default() };
    drop(raw);
    // A request of 480,000 bytes alone exceeds the limit.
    let status = program.sessions().batch_has_sessions(request).await.unwrap_err();
    assert_eq!(reason(&status), "TOO_MANY_PENDING_BYTES");
}

#[tokio::test]
async fn small_incomplete_requests_also_count_towards_the_limit() {
    let program = Program::start(&["--max-pending-bytes", "100000"]).await;
    let mut raw = Raw::connect(program.addr).await;
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let (response, mut body) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
        body.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 10]), false).unwrap();
        waiting.push((response, body));
    }
    raw.arrived().await;
    // Each request counts as one kilobyte more than its bytes.
    assert_eq!(program.metric("sessiond_refused_total{reason=\"TOO_MANY_PENDING_BYTES\"}").await, 200 - 97);
    drop(waiting);
}

#[tokio::test]
async fn a_connection_at_its_stream_limit_is_reported() {
    const MESSAGE: &str = "has reached its limit of open calls and streams";
    let program = Program::start(&["--max-streams", "3"]).await;
    assert_eq!(program.metric("sessiond_connections_full").await, 0);
    for times in 1..=3 {
        let mut raw = Raw::connect(program.addr).await;
        raw.arrived().await;
        // Two streams, and a call whose request is incomplete.
        for _ in 0..2 {
            raw.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&SubscribeRequest::default())).await;
        }
        raw.arrived().await;
        assert_eq!(program.metric("sessiond_connections_full").await, 0, "one more stream may be open");
        let (response, mut body) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
        body.send_data(Bytes::from_static(&[0]), false).unwrap();
        program.metric_comes_to("sessiond_connections_full", 1).await;
        drop((response, body, raw));
        program.metric_comes_to("sessiond_connections_full", 0).await;
        // A call that was answered immediately may also have been the third.
        assert!(program.metric("sessiond_connection_streams_used_up_total").await >= times);
    }
    program.logs(MESSAGE).await;
    assert_eq!(program.log().matches(MESSAGE).count(), 1, "the warning is rate limited: {}", program.log());
}

#[tokio::test]
async fn idle_connections_are_closed_and_connections_with_streams_are_not() {
    let program =
        Program::start(&["--idle-timeout", "500ms", "--keepalive-interval", "1s", "--keepalive-timeout", "1s"]).await;
    let client = program.sessions();
    let mut observed = Observed::now(&client).await;
    let began = Instant::now();
    // One connection made a call and is idle, one never makes a call, and one sends an incomplete header block.
    let mut quiet = Raw::connect(program.addr).await;
    quiet.arrived().await;
    let mut others = Vec::new();
    for bytes in [start(), [start(), crate::frames::frame(HEADERS, 0, 1, &headers("/x"))].concat()] {
        let mut socket = soon(TcpStream::connect(program.addr)).await.unwrap();
        soon(tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes)).await.unwrap();
        others.push(socket);
    }
    for mut socket in others {
        let _ = soon(socket.read_to_end(&mut Vec::new())).await;
    }
    soon(quiet.ended()).await;
    assert!(began.elapsed() >= Duration::from_millis(500));
    // The connection with the stream still works.
    assert!(create(&program.sessions(), 0, 5).await);
    assert_eq!(observed.events(1).await.len(), 1);
    assert!(has(&client, 0, 5).await);
}
