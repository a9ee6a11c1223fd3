//! Spans of calls, as a collector receives them, and log lines of calls.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use sessiond::proto::{CreateSessionRequest, HasSessionRequest, SubscribeRequest};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::{
    certificates::{Authority, text},
    fake::soon,
    observed::Observed,
    program::{Program, fails, serve},
    server::{Sessions, eventually},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A mock collector that records what it receives.
#[derive(Clone, Default)]
struct Collector {
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// The `authorization` header of the last export.
    token: Arc<Mutex<Option<String>>>,
    refuses: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Status::permission_denied("not you"));
        }
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        *self.token.lock().unwrap() = token;
        self.received.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port until the set is dropped. Returns the URL.
    async fn listen(&self) -> (String, JoinSet<()>) {
        let (port, serves) = self.listen_as(Server::builder()).await;
        (format!("http://127.0.0.1:{port}"), serves)
    }

    async fn listen_as(&self, mut server: Server) -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = server.add_service(TraceServiceServer::new(self.clone()));
        let serves = async { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() };
        (port, JoinSet::from_iter([serves]))
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let scopes = received.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Returns the resource attributes of the first export.
    fn resource(&self) -> BTreeMap<String, String> {
        let received = self.received.lock().unwrap();
        texts(&received[0].resource_spans[0].resource.as_ref().unwrap().attributes)
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), value(&attribute.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn code(span: &Span) -> i32 {
    texts(&span.attributes)["rpc.grpc.status_code"].parse().unwrap()
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn has(session_id: Option<i64>, traceparent: Option<String>) -> Request<HasSessionRequest> {
    let mut request = Request::new(HasSessionRequest { session_id, auth_key_id: 0 });
    if let Some(traceparent) = traceparent {
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    request
}

async fn call(client: &Sessions, request: Request<HasSessionRequest>) -> Result<bool, Status> {
    soon(client.clone().has_session(request)).await.map(|response| response.into_inner().exists)
}

async fn ended(mut program: Program) {
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
}

#[tokio::test]
async fn each_call_has_a_span_and_the_last_spans_are_sent_at_exit() {
    let collector = Collector::default();
    let (url, _serves) = collector.listen().await;
    let program = Program::start(&["--otlp-endpoint", &url, "--trace-sample-ratio", "1"]).await;
    let client = program.sessions();
    call(&client, has(Some(1), Some(format!("00-{TRACE}-{PARENT}-01")))).await.unwrap();
    let create = CreateSessionRequest { session_id: Some(2), ..Default::default() };
    soon(client.clone().create_session(create)).await.unwrap();
    call(&client, has(None, None)).await.unwrap_err();
    let mut observed = Observed::start(&client, SubscribeRequest::default()).await;
    program.signal("TERM").await;
    while observed.try_next().await.is_ok() {}
    let mut program = program;
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());

    let mut spans = collector.spans();
    spans.sort_by_key(|span| span.start_time_unix_nano);
    let received: Vec<_> = spans.iter().map(|span| (span.name.as_str(), code(span), is_error(span))).collect();
    let expected = [
        ("sessiond.v1.SessionService/HasSession", Code::Ok, false),
        ("sessiond.v1.SessionService/CreateSession", Code::Ok, false),
        // A caller's mistake is not an error of the server.
        ("sessiond.v1.SessionService/HasSession", Code::InvalidArgument, false),
        ("sessiond.v1.SessionService/Subscribe", Code::Unavailable, true),
    ];
    assert_eq!(received, expected.map(|(name, code, is_error)| (name, code as i32, is_error)));
    for span in &spans {
        assert_eq!(span.kind(), SpanKind::Server);
        assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    }
    assert!(spans[3].end_time_unix_nano > spans[2].end_time_unix_nano, "a stream's span ends with the stream");

    let attributes = texts(&spans[0].attributes);
    let expected = [
        ("network.peer.address", "127.0.0.1"),
        ("rpc.grpc.status_code", "0"),
        ("rpc.method", "HasSession"),
        ("rpc.service", "sessiond.v1.SessionService"),
        ("rpc.system", "grpc"),
    ];
    assert!(attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{attributes:?}");
    assert_eq!((hex(&spans[0].trace_id), hex(&spans[0].parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert!(spans[1].parent_span_id.is_empty() && hex(&spans[1].trace_id) != TRACE, "it starts a new trace");
    let resource = collector.resource();
    assert_eq!((&*resource["service.name"], &*resource["service.version"]), ("sessiond", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn spans_are_exported_over_tls_with_the_attributes_and_headers_of_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "collectors");
    let issued = authority.issue("collector", &["localhost"]);
    let read = |path: &Path| std::fs::read(path).unwrap();
    let identity = Identity::from_pem(read(&issued.cert), read(&issued.key));
    let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    let collector = Collector::default();
    let (port, _serves) = collector.listen_as(server).await;
    let environment = [
        ("SSL_CERT_FILE", text(&authority.ca)),
        ("SESSIOND_OTLP_ENDPOINT", &format!("https://localhost:{port}")),
        ("SESSIOND_TRACE_SAMPLE_RATIO", "1"),
        ("OTEL_SERVICE_NAME", "sessions-of-a-test"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20me"),
    ];
    let program = Program::start_in(&environment, &[]).await;
    call(&program.sessions(), has(Some(1), None)).await.unwrap();
    ended(program).await;
    assert_eq!(collector.spans().len(), 1);
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "sessions-of-a-test");
    assert_eq!(resource["deployment.environment.name"], "test");
    assert_eq!(collector.token.lock().unwrap().as_deref(), Some("Bearer me"));
}

#[tokio::test]
async fn the_callers_sampling_decision_takes_precedence_over_the_ratio() {
    let collector = Collector::default();
    let (url, _serves) = collector.listen().await;
    for (share, of_its_own) in [("0", 0), ("1", 3)] {
        collector.received.lock().unwrap().clear();
        let program = Program::start(&["--otlp-endpoint", &url, "--trace-sample-ratio", share]).await;
        let client = program.sessions();
        let yes = format!("00-{TRACE}-{PARENT}-01");
        let no = format!("00-{TRACE}-{PARENT}-00");
        let none = format!("00-{}-{PARENT}-01", "0".repeat(32));
        for traceparent in [Some(yes), Some(no), Some(none), Some("nonsense".to_owned()), None] {
            call(&client, has(Some(1), traceparent)).await.unwrap();
        }
        ended(program).await;
        let spans = collector.spans();
        let continued = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).count();
        assert_eq!((continued, spans.len() - continued), (1, of_its_own), "a share of {share}");
    }
}

#[tokio::test]
async fn a_collector_that_refuses_spans_is_logged_once_and_again_when_it_accepts_them() {
    let collector = Collector::default();
    collector.refuses.store(true, Ordering::Relaxed);
    let (url, _serves) = collector.listen().await;
    let program = Program::start(&["--otlp-endpoint", &url, "--trace-sample-ratio", "1"]).await;
    let client = program.sessions();
    // More spans than the queue holds. Batches of 512 are sent when they are full.
    for _ in 0..3000 {
        call(&client, has(Some(1), None)).await.unwrap();
    }
    program.logs("spans are lost").await;
    collector.refuses.store(false, Ordering::Relaxed);
    let mut calls = 0;
    while collector.spans().is_empty() {
        call(&client, has(Some(1), None)).await.unwrap();
        calls += 1;
        assert!(calls < 100_000, "spans are never exported again: {}", program.log());
    }
    program.logs("spans are exported again").await;
    assert_eq!(program.log().matches("spans are lost").count(), 1, "{}", program.log());
    assert!(program.log().contains("PermissionDenied"), "{}", program.log());
    ended(program).await;
}

#[tokio::test]
async fn a_collector_that_does_not_answer_delays_neither_calls_nor_the_exit() {
    // This collector's connections are established but never served.
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", stuck.local_addr().unwrap());
    let drain = Duration::from_secs(1);
    let program =
        Program::start(&["--otlp-endpoint", &url, "--trace-sample-ratio", "1", "--drain-timeout", "1s"]).await;
    let client = program.sessions();
    // More spans than the queue holds.
    for _ in 0..4000 {
        call(&client, has(Some(1), None)).await.unwrap();
    }
    let began = Instant::now();
    ended(program).await;
    assert!(began.elapsed() < drain + Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn calls_are_logged_if_the_log_filter_asks_for_them() {
    for (filter, lines) in [("info", 0), ("info,sessiond::call=debug", 1)] {
        let program = Program::start(&["--log", filter]).await;
        call(&program.sessions(), has(None, Some(format!("00-{TRACE}-{PARENT}-01")))).await.unwrap_err();
        if lines > 0 {
            eventually("the call is logged", || program.log().contains(TRACE)).await;
        }
        let log = program.log();
        let line = log.lines().filter(|line| line.contains("HasSession")).inspect(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (&line["fields"]["message"], &line["fields"]["code"]),
                (&"ended".into(), &"InvalidArgument".into())
            );
            let span = &line["span"];
            assert_eq!(span["method"], "sessiond.v1.SessionService/HasSession");
            assert_eq!((&span["peer"], &span["trace_id"]), (&"127.0.0.1".into(), &TRACE.into()));
        });
        assert_eq!(line.count(), lines, "{log}");
    }
}

#[tokio::test]
async fn invalid_collector_urls_and_sample_ratios_are_refused() {
    for (flag, value, says) in [
        ("--otlp-endpoint", "collector:4317", "http://HOST:4317"),
        ("--otlp-endpoint", "ftp://collector", "http://HOST:4317"),
        ("--trace-sample-ratio", "1.1", "from 0 to 1"),
        ("--trace-sample-ratio", "NaN", "from 0 to 1"),
    ] {
        let (code, stderr) = fails(serve(&[flag, value])).await;
        assert_eq!(code, Some(2), "{flag} {value}: {stderr}");
        assert!(stderr.contains(says), "{flag} {value}: {stderr}");
    }
}
