//! Compares the table of error reasons with the statuses that the server sends, the comments in the proto, the README,
//! and the client's retry policy.

use std::{collections::BTreeMap, fs, future::Future, num::NonZeroU32, path::Path, time::Duration};

use bytes::Bytes;
use sessiond::{
    access::NewToken,
    client::{Client, ClientError},
    proto::{
        BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest, BatchLookupSessionsRequest,
        CreateSessionRequest, DestroySessionRequest, GrantLeaseRequest, HasSessionRequest, KeepLeaseAliveRequest,
        ListLeasesRequest, LookupSessionRequest, RevokeLeaseRequest, SubscribeRequest,
    },
    reason::{Calls, ERROR_DOMAIN, ErrorReason, REASONS, Retry},
    server::{ConnectionOptions, RateLimit},
    service::ServiceOptions,
    session::SessionKey,
    subject::SubjectOptions,
};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    certificates::{Authority, text},
    fake::{duration, soon},
    faulty,
    leases::grant,
    observed::{Observed, after},
    program::Program,
    raw::{Raw, SERVICE, answer, framed, grpc},
    server::{Running, config},
    sessions::create,
};

const LEASES: &str = "/sessiond.v1.LeaseService";

/// The reasons that the server has sent, and how often.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, usize>);

impl Seen {
    /// Checks an error that was sent before any message.
    #[track_caller]
    fn refused(&mut self, call: &str, status: &Status) {
        let reason = agrees(call, status);
        let pushback = status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap().to_owned());
        let expected = match (reason.row().retry, status.code()) {
            (Retry::AfterRetryInfo, _) => Some(retry_after(status).unwrap().as_millis().to_string()),
            (_, Code::ResourceExhausted) => Some("-1".to_owned()),
            _ => None,
        };
        assert_eq!(pushback, expected, "{reason:?}: grpc-retry-pushback-ms");
        *self.0.entry(reason.name()).or_default() += 1;
    }

    /// Checks the error of a generated client's call.
    async fn call<T>(&mut self, call: &str, answer: impl Future<Output = Result<Response<T>, Status>>) {
        let status = soon(answer).await.err().unwrap_or_else(|| panic!("{call} succeeded"));
        self.refused(call, &status);
    }
}

fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Checks the status of `call` against the table. Returns its reason.
#[track_caller]
pub(crate) fn agrees(call: &str, status: &Status) -> ErrorReason {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, ERROR_DOMAIN);
    let reason = ErrorReason::from_name(&info.reason).unwrap_or_else(|| panic!("{} has no row", info.reason));
    let row = reason.row();
    let returned = row.returned.iter().any(|(code, calls)| *code == status.code() && calls.include(call));
    assert!(returned, "{call} returns {:?} with {reason:?}, but the table has {:?}", status.code(), row.returned);
    assert_eq!(retry_after(status).is_some(), row.retry == Retry::AfterRetryInfo, "{reason:?}: {:?}", row.retry);
    let error =
        ClientError::from(Status::with_details(status.code(), status.message(), status.details().to_vec().into()));
    assert_eq!(error.is_retryable(), row.retry != Retry::Never, "{reason:?}: {:?}", row.retry);
    reason
}

/// Makes requests that are invalid in any state of the registry.
async fn bad_requests(seen: &mut Seen) {
    let server = Running::start().await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    seen.call("HasSession", client.has_session(HasSessionRequest::default())).await;
    seen.call("LookupSession", client.lookup_session(LookupSessionRequest::default())).await;
    seen.call("CreateSession", client.create_session(CreateSessionRequest::default())).await;
    let request = CreateSessionRequest { session_id: Some(1), only_from_lease_id: Some(7), ..Default::default() };
    seen.call("CreateSession", client.create_session(request)).await;
    let request =
        BatchCreateSessionsRequest { session_ids: vec![1], only_from_lease_id: Some(0), ..Default::default() };
    seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;
    seen.call("DestroySession", client.destroy_session(DestroySessionRequest::default())).await;
    for (session_ids, auth_key_ids) in [(vec![1, 2], vec![1]), (vec![0; 65_537], vec![])] {
        let request = BatchHasSessionsRequest { session_ids: session_ids.clone(), auth_key_ids: auth_key_ids.clone() };
        seen.call("BatchHasSessions", client.batch_has_sessions(request)).await;
        let request =
            BatchLookupSessionsRequest { session_ids: session_ids.clone(), auth_key_ids: auth_key_ids.clone() };
        seen.call("BatchLookupSessions", client.batch_lookup_sessions(request)).await;
        let request = BatchCreateSessionsRequest {
            session_ids: session_ids.clone(),
            auth_key_ids: auth_key_ids.clone(),
            ..Default::default()
        };
        seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;
        let request = BatchDestroySessionsRequest { session_ids, auth_key_ids, ..Default::default() };
        seen.call("BatchDestroySessions", client.batch_destroy_sessions(request)).await;
    }
    seen.call("Subscribe", client.subscribe(after("no cursor"))).await;
    seen.call("Subscribe", client.subscribe(SubscribeRequest { types: vec![9], ..Default::default() })).await;
    let heartbeat = Some(duration(Duration::ZERO));
    seen.call("Subscribe", client.subscribe(SubscribeRequest { heartbeat, ..Default::default() })).await;
    seen.call("GrantLease", leases.grant_lease(GrantLeaseRequest::default())).await;
    let request = GrantLeaseRequest { ttl: Some(duration(Duration::from_secs(9))), owner: "x".repeat(129) };
    seen.call("GrantLease", leases.grant_lease(request)).await;
    let linger = Some(duration(Duration::from_secs(3601)));
    seen.call("RevokeLease", leases.revoke_lease(RevokeLeaseRequest { lease_id: 7, linger })).await;
    seen.call("ListLeases", leases.list_leases(ListLeasesRequest { page_token: "7x".into(), ..Default::default() }))
        .await;
    seen.call("ListLeases", leases.list_leases(ListLeasesRequest { lease_ids: vec![7; 65_537], ..Default::default() }))
        .await;
    let lease_id = grant(&leases, Duration::from_secs(60)).await;
    leases
        .revoke_lease(RevokeLeaseRequest { lease_id, linger: Some(duration(Duration::from_secs(60))) })
        .await
        .unwrap();
    seen.call("KeepLeaseAlive", leases.keep_lease_alive(KeepLeaseAliveRequest { lease_id })).await;
    let request = CreateSessionRequest { session_id: Some(1), lease_id, ..Default::default() };
    seen.call("CreateSession", client.create_session(request)).await;
    let request = BatchCreateSessionsRequest { session_ids: vec![1], lease_id, ..Default::default() };
    seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;
    seen.call("KeepLeaseAlive", leases.keep_lease_alive(KeepLeaseAliveRequest { lease_id: 7 })).await;
    seen.call("RevokeLease", leases.revoke_lease(RevokeLeaseRequest { lease_id: 7, linger: None })).await;
    let request = CreateSessionRequest { session_id: Some(1), lease_id: 7, ..Default::default() };
    seen.call("CreateSession", client.create_session(request)).await;
    let request = BatchCreateSessionsRequest { session_ids: vec![1], lease_id: 7, ..Default::default() };
    seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;

    let mut raw = Raw::connect(server.addr).await;
    let calls = ["SessionService/HasSession", "SessionService/Subscribe", "LeaseService/KeepLeaseAlive"];
    // A compressed message, a truncated one, and one that is too large.
    let bodies: [&'static [u8]; 3] = [&[1, 0, 0, 0, 1, 7], &[0, 0, 0, 0, 9, 1], &[0, 0xff, 0xff, 0xff, 0xff, 7]];
    for (path, body) in calls.iter().flat_map(|path| bodies.map(|body| (path, body))) {
        let answer = raw.send(grpc(&format!("/sessiond.v1.{path}")), Bytes::from_static(body)).await.unwrap();
        seen.refused(path.rsplit('/').next().unwrap(), &answer.grpc.unwrap());
    }
    let answer = raw.send(grpc(&format!("{SERVICE}/NoSuchCall")), framed(&HasSessionRequest::default())).await.unwrap();
    seen.refused("NoSuchCall", &answer.grpc.unwrap());
}

/// Exceeds the server's limits.
async fn limits(seen: &mut Seen) {
    let subject = SubjectOptions::default().max_observers(1).max_filter_ids(2);
    let calls = ServiceOptions::default()
        .max_message_bytes(100_000)
        .max_pending_bytes(20_000)
        .call_timeout(Duration::from_secs(2));
    let limited = config().subject(subject).max_sessions(1).max_leases(1).calls(calls);
    let server = Running::with(limited).await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    let observed = Observed::now(&client).await;
    seen.call("Subscribe", client.subscribe(SubscribeRequest::default())).await;
    drop(observed);
    server.observers(0).await;
    let filtered = SubscribeRequest { session_ids: vec![1, 2, 3], ..Default::default() };
    seen.call("Subscribe", client.subscribe(filtered)).await;
    // The first of two observers uses up the limit that all filters share.
    let two = config().subject(SubjectOptions::default().max_filter_ids(2).max_total_filter_ids(3));
    let other = Running::with(two).await;
    let filtered = || SubscribeRequest { session_ids: vec![1, 2], ..Default::default() };
    let _first = Observed::start(&other.sessions(), filtered()).await;
    seen.call("Subscribe", other.sessions().subscribe(filtered())).await;

    assert!(create(&client, 0, 1).await);
    let request = CreateSessionRequest { session_id: Some(2), ..Default::default() };
    seen.call("CreateSession", client.create_session(request)).await;
    let request = BatchCreateSessionsRequest { session_ids: vec![2, 3], ..Default::default() };
    seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;
    grant(&leases, Duration::from_secs(60)).await;
    let request = GrantLeaseRequest { ttl: Some(duration(Duration::from_secs(9))), ..Default::default() };
    seen.call("GrantLease", leases.grant_lease(request)).await;

    // Incomplete requests: the first takes most of the memory for pending requests, and runs into the call timeout.
    let mut raw = Raw::connect(server.addr).await;
    let half = Bytes::from([&[0, 0, 1, 0, 0][..], &[0; 15_000]].concat());
    let (first, mut body) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
    body.send_data(half.clone(), false).unwrap();
    let (second, mut other_body) = raw.open(grpc(&format!("{SERVICE}/BatchCreateSessions"))).await;
    other_body.send_data(half, false).unwrap();
    seen.refused("BatchCreateSessions", &soon(answer(second)).await.unwrap().grpc.unwrap());
    let mut request = grpc(&format!("{SERVICE}/HasSession"));
    request.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let (third, _open) = raw.open(request).await;
    seen.refused("HasSession", &soon(answer(third)).await.unwrap().grpc.unwrap());
    seen.refused("BatchHasSessions", &soon(answer(first)).await.unwrap().grpc.unwrap());
}

/// Makes calls without valid credentials, without the required scope, and over the rate limit.
async fn refused_callers(seen: &mut Seen) {
    let folder = tempfile::tempdir().unwrap();
    let (reads, expired) = (NewToken::generate("reads").unwrap(), NewToken::generate("expired").unwrap());
    let list = folder.path().join("access");
    let line = |token: &NewToken| token.line("read".parse().unwrap());
    fs::write(&list, format!("{}\n{} until=2020-01-01T00:00:00Z\n", line(&reads), line(&expired))).unwrap();
    let server = Running::with(config().access_file(list.clone())).await;
    let mut raw = Raw::connect(server.addr).await;
    let wrong = NewToken::generate("reads").unwrap();
    for (token, call) in [
        (None, "HasSession"),
        (Some(&wrong), "HasSession"),
        (Some(&expired), "Subscribe"),
        (Some(&reads), "Subscribe"),
        (Some(&reads), "CreateSession"),
    ] {
        let mut request = grpc(&format!("{SERVICE}/{call}"));
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {}", token.token()).parse().unwrap());
        }
        let answer =
            raw.send(request, framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 })).await.unwrap();
        seen.refused(call, &answer.grpc.unwrap());
    }

    let ours = Authority::new(folder.path(), "ours");
    let certificate = ours.issue("server", &["127.0.0.1"]);
    let [cert, key, ca] = [&certificate.cert, &certificate.key, &ours.ca].map(|path| text(path));
    let tls = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca, "--access-file", text(&list)];
    let program = Program::start(&tls).await;
    let stranger = ours.issue("stranger", &["stranger.example"]);
    let client = Client::builder(&format!("https://{}", program.addr)).unwrap().tls_ca(fs::read(&ours.ca).unwrap());
    let client = client.tls_identity(fs::read(&stranger.cert).unwrap(), fs::read(&stranger.key).unwrap());
    let error = soon(client.connect_lazy().unwrap().has(SessionKey::new(0, 1))).await.unwrap_err();
    seen.refused("HasSession", error.status().unwrap());

    let one = NonZeroU32::new(1).unwrap();
    let server = Running::with(config().rate_limit(RateLimit::new(one, one))).await;
    let mut raw = Raw::connect(server.addr).await;
    let lease = KeepLeaseAliveRequest { lease_id: 7 };
    let (mut is_limited, request) = (false, HasSessionRequest { session_id: Some(1), auth_key_id: 0 });
    while !is_limited {
        let status = raw.call(&format!("{SERVICE}/HasSession"), &request).await.grpc.unwrap();
        is_limited = status.code() != Code::Ok;
        if is_limited {
            seen.refused("HasSession", &status);
        }
    }
    seen.refused("KeepLeaseAlive", &raw.call(&format!("{LEASES}/KeepLeaseAlive"), &lease).await.grpc.unwrap());
}

/// Makes calls while the storage fails, a connection closes, or the server drains.
async fn server_failures(seen: &mut Seen) {
    let (storage, server) = faulty::served().await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    let ttl = Some(duration(Duration::from_secs(9)));
    let session_id = Some(1);
    for state in [faulty::UNREACHABLE, faulty::BROKEN, faulty::REFUSES] {
        storage.set_state(state);
        let request = CreateSessionRequest { session_id, ..Default::default() };
        seen.call("CreateSession", client.create_session(request)).await;
        let request = DestroySessionRequest { session_id, ..Default::default() };
        seen.call("DestroySession", client.destroy_session(request)).await;
        let request = BatchCreateSessionsRequest { session_ids: vec![1, 2], ..Default::default() };
        seen.call("BatchCreateSessions", client.batch_create_sessions(request)).await;
        let request = BatchDestroySessionsRequest { session_ids: vec![1, 2], ..Default::default() };
        seen.call("BatchDestroySessions", client.batch_destroy_sessions(request)).await;
        seen.call("GrantLease", leases.grant_lease(GrantLeaseRequest { ttl, owner: String::new() })).await;
    }

    let idle_timeout = Duration::from_millis(300);
    let connections = ConnectionOptions::default().idle_timeout(idle_timeout);
    let server = Running::with(config().connections(connections)).await;
    let mut raw = Raw::connect(server.addr).await;
    let watch = raw.begin(grpc("/grpc.health.v1.Health/Watch"), framed(&HealthCheckRequest::default())).await.unwrap();
    let closing = soon(answer(watch)).await.unwrap().grpc.unwrap();
    seen.0.insert(agrees("Health.Watch", &closing).name(), 1);
    let connections = ConnectionOptions::default().max_age(Some(Duration::from_millis(300)));
    let server = Running::with(config().connections(connections)).await;
    let ended = Observed::now(&server.sessions()).await.ended().await;
    assert_eq!(agrees("Subscribe", &ended), ErrorReason::ConnectionClosing);

    let server = Running::start().await;
    let client = server.sessions();
    let observed = Observed::now(&client).await;
    server.subject.close();
    seen.call("Subscribe", client.clone().subscribe(SubscribeRequest::default())).await;
    let ended = observed.ended().await;
    assert_eq!(agrees("Subscribe", &ended), ErrorReason::ServerDraining);
    assert!(!ended.metadata().contains_key("grpc-retry-pushback-ms"), "no library can retry a stream with messages");
}

#[tokio::test]
async fn the_server_sends_every_reason_as_in_the_table() {
    let mut seen = Seen::default();
    bad_requests(&mut seen).await;
    limits(&mut seen).await;
    refused_callers(&mut seen).await;
    server_failures(&mut seen).await;
    let mut all: Vec<_> = REASONS.iter().map(|row| row.reason.name()).collect();
    all.sort_unstable();
    assert_eq!(seen.0.keys().copied().collect::<Vec<_>>(), all);
}

/// Formats codes and calls as in the documents.
fn returned(returned: &[(Code, Calls)]) -> String {
    let code = |code: Code| match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::NotFound => "NOT_FOUND",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Internal => "INTERNAL",
        Code::Unimplemented => "UNIMPLEMENTED",
        code => panic!("the table does not use {code:?}"),
    };
    returned.iter().map(|(of, calls)| format!("{} from {calls}", code(*of))).collect::<Vec<_>>().join("; ")
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Reads the name, the meaning and the last line of each value's comment in the proto.
fn comments() -> Vec<(String, String, String)> {
    let proto = read("proto/sessiond/v1/error_reason.proto");
    let (_, values) = proto.split_once("enum ErrorReason {").unwrap();
    let mut comments = Vec::new();
    let mut paragraphs = vec![String::new()];
    for line in values.lines().map(str::trim) {
        match line.strip_prefix("//") {
            Some("") => paragraphs.push(String::new()),
            Some(text) => paragraphs.last_mut().unwrap().push_str(text),
            None => {
                if let Some((name, _)) = line.split_once(" = ")
                    && let [meaning, facts] = &paragraphs[..]
                {
                    comments.push((name.to_owned(), meaning.trim().to_owned(), facts.trim().to_owned()));
                }
                paragraphs = vec![String::new()];
            }
        }
    }
    comments
}

#[test]
fn the_proto_comments_agree_with_the_table() {
    let comments = comments();
    assert_eq!(comments.len(), REASONS.len());
    for (row, (name, _, facts)) in REASONS.iter().zip(comments) {
        assert_eq!(name, row.reason.as_str_name());
        assert_eq!(facts, format!("{}. Retry: {}.", returned(row.returned), row.retry), "{name}");
    }
}

#[test]
fn the_readme_agrees_with_the_table() {
    let readme = read("README.md");
    let rows: Vec<_> =
        readme.lines().skip_while(|line| *line != "| reason | meaning | code and calls | retry |").collect();
    let rows: Vec<_> = rows.into_iter().skip(2).take_while(|line| line.starts_with('|')).collect();
    let expected = REASONS.iter().zip(comments()).map(|(row, (_, meaning, _))| {
        format!("| `{}` | {meaning} | {} | {} |", row.reason.name(), returned(row.returned), row.retry)
    });
    assert_eq!(rows, expected.collect::<Vec<_>>());
}

#[test]
fn the_client_retries_as_in_the_table() {
    for row in &REASONS {
        for (code, _) in row.returned {
            let details = ErrorDetails::with_error_info(row.reason.name(), ERROR_DOMAIN, [] as [(String, String); 0]);
            let error = ClientError::from(Status::with_error_details(*code, "", details));
            assert_eq!(error.is_retryable(), row.retry != Retry::Never, "{row:?}");
        }
    }
}
