//! Checks every row of the contract's table of errors over the wire.

use std::time::Duration;

use bytes::Bytes;
use sessiond::{
    proto::{
        BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest, CreateSessionRequest,
        DestroySessionRequest, GrantLeaseRequest, HasSessionRequest, KeepLeaseAliveRequest, ListLeasesRequest,
        RevokeLeaseRequest, SubscribeRequest,
    },
    reason::{ErrorReason, Retry},
    service::ServiceOptions,
    subject::SubjectOptions,
};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::{
    fake::{duration, soon},
    leases::grant,
    observed::{Observed, after},
    raw::{Raw, SERVICE, framed, grpc},
    server::{Running, config},
    sessions::{create, has},
};

/// A row of the table.
pub(crate) struct Refusal {
    code: Code,
    reason: &'static str,
    /// The field in the BadRequest violation.
    field: Option<&'static str>,
    /// Text that the message must contain.
    says: &'static str,
}

pub(crate) const fn refusal(
    code: Code,
    reason: &'static str,
    field: Option<&'static str>,
    says: &'static str,
) -> Refusal {
    Refusal { code, reason, field, says }
}

const fn invalid(reason: &'static str, field: &'static str, says: &'static str) -> Refusal {
    refusal(Code::InvalidArgument, reason, Some(field), says)
}

const fn exhausted(reason: &'static str, flag: &'static str) -> Refusal {
    refusal(Code::ResourceExhausted, reason, None, flag)
}

impl Refusal {
    fn assert(&self, status: &Status) {
        assert_eq!(status.code(), self.code, "{status:?}");
        assert!(status.message().contains(self.says), "{}", status.message());
        assert!(!status.message().contains("secret"), "the internal cause is not sent");
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("sessiond", self.reason));
        let fields: Vec<&str> = details
            .bad_request()
            .map(|bad| bad.field_violations.iter().map(|violation| violation.field.as_str()).collect())
            .unwrap_or_default();
        assert_eq!(fields, self.field.as_slice(), "{}", self.reason);
        let has_delay = details.retry_info().is_some_and(|info| info.retry_delay.is_some());
        let retry = ErrorReason::from_name(self.reason).expect("the reason is in the table").row().retry;
        assert_eq!(has_delay, retry == Retry::AfterRetryInfo, "{}", self.reason);
    }

    pub(crate) async fn of<T: std::fmt::Debug>(&self, call: impl Future<Output = Result<Response<T>, Status>>) {
        self.assert(&soon(call).await.map(Response::into_inner).expect_err(self.reason));
    }
}

#[tokio::test]
async fn a_missing_session_id_is_refused() {
    let server = Running::start().await;
    let mut client = server.sessions();
    let missing = invalid("SESSION_ID_MISSING", "session_id", "set it");
    missing.of(client.has_session(HasSessionRequest::default())).await;
    missing.of(client.create_session(CreateSessionRequest { auth_key_id: 7, ..Default::default() })).await;
    missing.of(client.destroy_session(DestroySessionRequest::default())).await;
}

#[tokio::test]
async fn batches_with_unequal_or_overlong_lists_are_refused() {
    let server = Running::start().await;
    let mut client = server.sessions();
    let unequal = invalid("UNEQUAL_LISTS", "auth_key_ids", "one for each");
    let (ids, keys) = (vec![1, 2, 3], vec![1, 2]);
    let request = BatchHasSessionsRequest { session_ids: ids.clone(), auth_key_ids: keys.clone() };
    unequal.of(client.batch_has_sessions(request)).await;
    let request =
        BatchCreateSessionsRequest { session_ids: ids.clone(), auth_key_ids: keys.clone(), ..Default::default() };
    unequal.of(client.batch_create_sessions(request)).await;
    let request = BatchDestroySessionsRequest { session_ids: ids, auth_key_ids: keys, ..Default::default() };
    unequal.of(client.batch_destroy_sessions(request)).await;
    let request = BatchHasSessionsRequest { session_ids: vec![], auth_key_ids: vec![1] };
    unequal.of(client.batch_has_sessions(request)).await;

    let too_large = invalid("BATCH_TOO_LARGE", "session_ids", "65536");
    let session_ids: Vec<i64> = (0..65_537).collect();
    let request = BatchHasSessionsRequest { session_ids: session_ids.clone(), ..Default::default() };
    too_large.of(client.batch_has_sessions(request)).await;
    let request = BatchCreateSessionsRequest { session_ids: session_ids.clone(), ..Default::default() };
    too_large.of(client.batch_create_sessions(request)).await;
    let request = BatchDestroySessionsRequest { session_ids, ..Default::default() };
    too_large.of(client.batch_destroy_sessions(request)).await;
    assert_eq!(server.subject.session_count().await.unwrap(), 0, "a refused batch creates nothing");
}

/// Durations that are invalid whatever the bounds.
const NONSENSE: [(i64, i32); 8] = [
    (-1, 0),
    (0, -1),
    (i64::MIN, 0),
    (i64::MIN, i32::MIN),
    (i64::MAX, i32::MAX),
    // The nanoseconds are out of range, or their sign differs from that of the seconds.
    (0, 1_000_000_000),
    (1, i32::MAX),
    (2, -1),
];

#[tokio::test]
async fn durations_out_of_bounds_are_refused() {
    let server = Running::start().await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    let heartbeat = invalid("BAD_DURATION", "heartbeat", "between 100 ms and 1 h");
    let out_of_bounds = [(0, 0), (0, 99_999_999), (3600, 1), (1 << 40, 0)];
    for (seconds, nanos) in NONSENSE.into_iter().chain(out_of_bounds) {
        let duration = Some(prost_types::Duration { seconds, nanos });
        heartbeat.of(client.subscribe(SubscribeRequest { heartbeat: duration, ..Default::default() })).await;
    }
    let ttl = invalid("BAD_DURATION", "ttl", "between 1 s and 24 h");
    let out_of_bounds = [(0, 0), (0, 999_999_999), (24 * 3600, 1), (1 << 40, 0)];
    for (seconds, nanos) in NONSENSE.into_iter().chain(out_of_bounds) {
        let duration = Some(prost_types::Duration { seconds, nanos });
        ttl.of(leases.grant_lease(GrantLeaseRequest { ttl: duration, ..Default::default() })).await;
    }
    ttl.of(leases.grant_lease(GrantLeaseRequest::default())).await;
    let linger = invalid("BAD_DURATION", "linger", "between 0 and 1 h");
    for (seconds, nanos) in NONSENSE.into_iter().chain([(3600, 1), (1 << 40, 0)]) {
        let duration = Some(prost_types::Duration { seconds, nanos });
        linger.of(leases.revoke_lease(RevokeLeaseRequest { lease_id: 7, linger: duration })).await;
    }
    server.observers(0).await;
}

#[tokio::test]
async fn malformed_cursors_are_refused() {
    let server = Running::start().await;
    let mut client = server.sessions();
    let cursor = Observed::now(&client).await.cursor;
    let malformed = invalid("MALFORMED_CURSOR", "cursor", "exactly as you received it");
    let (cut, longer) = (cursor[..cursor.len() - 1].to_owned(), format!("{cursor}0"));
    let empty = invalid("MALFORMED_CURSOR", "cursor", "leave it unset");
    empty.of(client.subscribe(after(""))).await;
    for cursor in ["0", "nonsense", "\u{0}", "é", &cut, &longer, &"f".repeat(1 << 20)] {
        malformed.of(client.subscribe(after(cursor))).await;
    }
}

#[tokio::test]
async fn unknown_event_types_in_a_filter_are_refused() {
    let server = Running::start().await;
    let mut client = server.sessions();
    let unknown = invalid("UNKNOWN_EVENT_TYPE", "types", "CREATED");
    for r#type in [0, 4, -1, i32::MAX] {
        unknown.of(client.subscribe(SubscribeRequest { types: vec![1, r#type], ..Default::default() })).await;
    }
}

#[tokio::test]
async fn list_leases_refuses_malformed_page_tokens_and_too_many_ids() {
    let server = Running::start().await;
    let mut leases = server.leases();
    let token = invalid("MALFORMED_PAGE_TOKEN", "page_token", "the last next_page_token");
    for page_token in ["x", "0", "07", "-1", "+7", "ffffffffffffffffff", &"7".repeat(1000)] {
        let request = ListLeasesRequest { page_token: page_token.to_owned(), ..Default::default() };
        token.of(leases.list_leases(request)).await;
    }
    let request = ListLeasesRequest { lease_ids: vec![7; 65_537], ..Default::default() };
    invalid("BATCH_TOO_LARGE", "lease_ids", "at most 65536").of(leases.list_leases(request)).await;
}

#[tokio::test]
async fn an_owner_that_is_too_long_is_refused() {
    let server = Running::start().await;
    let request = GrantLeaseRequest { ttl: Some(duration(Duration::from_secs(9))), owner: "x".repeat(129) };
    invalid("OWNER_TOO_LONG", "owner", "128").of(server.leases().grant_lease(request)).await;
}

#[tokio::test]
async fn a_gone_lease_is_not_found_for_lease_calls_and_a_failed_precondition_for_creates() {
    let server = Running::start().await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    let gone = refusal(Code::NotFound, "LEASE_GONE", None, "grant a new one");
    for lease_id in [0, 1, u64::MAX] {
        gone.of(leases.keep_lease_alive(KeepLeaseAliveRequest { lease_id })).await;
        gone.of(leases.revoke_lease(RevokeLeaseRequest { lease_id, linger: None })).await;
    }
    let gone = refusal(Code::FailedPrecondition, "LEASE_GONE", None, "grant a new one");
    let request = CreateSessionRequest { session_id: Some(1), auth_key_id: 0, lease_id: 7, ..Default::default() };
    gone.of(client.create_session(request)).await;
    let request =
        BatchCreateSessionsRequest { session_ids: vec![1, 2], auth_key_ids: vec![], lease_id: 7, ..Default::default() };
    gone.of(client.batch_create_sessions(request)).await;
    assert!(!has(&client, 0, 1).await);
    assert!(create(&client, 0, 1).await);
    let request = CreateSessionRequest { session_id: Some(1), auth_key_id: 0, lease_id: 7, ..Default::default() };
    gone.of(client.create_session(request)).await;
    let request = DestroySessionRequest { session_id: Some(1), auth_key_id: 0, lease_id: 7, ..Default::default() };
    assert!(!client.destroy_session(request).await.unwrap().into_inner().destroyed);
}

#[tokio::test]
async fn limits_name_the_flag_that_raises_them() {
    let subject = SubjectOptions::default().max_observers(2).max_filter_ids(3);
    let calls = ServiceOptions::default().max_message_bytes(1024);
    let limited = config().subject(subject).max_sessions(3).max_leases(1).calls(calls);
    let server = Running::with(limited).await;
    let (mut client, mut leases) = (server.sessions(), server.leases());

    let first = Observed::now(&client).await;
    let _second = Observed::now(&server.sessions()).await;
    let observers = exhausted("TOO_MANY_OBSERVERS", "--max-observers");
    observers.of(client.subscribe(SubscribeRequest::default())).await;
    drop(first);
    server.observers(1).await;

    let filtered = |session_ids, auth_key_ids| SubscribeRequest { session_ids, auth_key_ids, ..Default::default() };
    let ids = exhausted("TOO_MANY_FILTER_IDS", "--max-filter-ids");
    ids.of(client.subscribe(filtered(vec![1, 2], vec![3, 4]))).await;
    drop(Observed::start(&client, filtered(vec![1, 2], vec![3])).await);
    server.observers(1).await;

    for id in 0..3 {
        assert!(create(&client, 0, id).await);
    }
    let sessions = exhausted("TOO_MANY_SESSIONS", "--max-sessions");
    sessions.of(client.create_session(CreateSessionRequest { session_id: Some(3), ..Default::default() })).await;
    assert!(!create(&client, 0, 2).await, "an existing session does not count again");

    let lease = grant(&leases, Duration::from_secs(3600)).await;
    let request = GrantLeaseRequest { ttl: Some(duration(Duration::from_secs(1))), ..Default::default() };
    exhausted("TOO_MANY_LEASES", "--max-leases").of(leases.grant_lease(request)).await;
    leases.revoke_lease(RevokeLeaseRequest { lease_id: lease, linger: None }).await.unwrap();
    grant(&leases, Duration::from_secs(3600)).await;

    let request = BatchHasSessionsRequest { session_ids: vec![0; 200], ..Default::default() };
    exhausted("REQUEST_TOO_LARGE", "--max-message-bytes").of(client.batch_has_sessions(request)).await;
    let request = GrantLeaseRequest { owner: "x".repeat(1024), ..Default::default() };
    exhausted("REQUEST_TOO_LARGE", "--max-message-bytes").of(leases.grant_lease(request)).await;
}

#[tokio::test]
async fn the_filters_of_all_observers_share_a_limit() {
    let subject = SubjectOptions::default().max_total_filter_ids(5);
    let server = Running::with(config().subject(subject)).await;
    let mut client = server.sessions();
    let filtered = |session_ids| SubscribeRequest { session_ids, ..Default::default() };
    let first = Observed::start(&client, filtered(vec![1, 2, 3])).await;
    let _second = Observed::start(&client, filtered(vec![3, 4])).await;
    let ids = exhausted("TOO_MANY_TOTAL_FILTER_IDS", "--max-total-filter-ids");
    ids.of(client.subscribe(filtered(vec![1]))).await;
    let too_many = exhausted("TOO_MANY_FILTER_IDS", "--max-filter-ids");
    too_many.of(client.subscribe(filtered((0..524_000).collect()))).await;
    // An observer without id filters is not refused. The ids of an observer that leaves are free again.
    let _third = Observed::now(&client).await;
    assert_eq!(server.subject.stats().filter_ids, 5);
    drop(first);
    server.observers(2).await;
    // An id that a filter repeats counts once.
    drop(Observed::start(&client, filtered(vec![5; 10_000])).await);
    server.observers(2).await;
    let _fourth = Observed::start(&client, filtered(vec![5, 6, 7])).await;
    ids.of(client.subscribe(filtered(vec![8]))).await;
}

#[tokio::test]
async fn a_message_over_the_default_limit_is_refused_and_the_connection_stays_usable() {
    let server = Running::start().await;
    let mut client = server.sessions();
    let request = BatchHasSessionsRequest { session_ids: vec![0; 1 << 20], ..Default::default() };
    exhausted("REQUEST_TOO_LARGE", "--max-message-bytes").of(client.batch_has_sessions(request)).await;
    assert!(!has(&client, 0, 1).await, "the connection still works");
}

const LEASES: &str = "/sessiond.v1.LeaseService";

#[tokio::test]
async fn unknown_methods_and_malformed_requests_are_refused_with_a_reason() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let message = framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 });

    let unknown = refusal(Code::Unimplemented, "UNKNOWN_METHOD", None, "proto/sessiond/v1");
    let names = ["Nope", "", "hasSession", "HasSession/", "../HasSession"];
    let methods = names.iter().flat_map(|name| [format!("{SERVICE}/{name}"), format!("{LEASES}/{name}")]);
    let others = ["/", "/HasSession", "/sessiond.v1.SessionService", "/sessiond.v2.SessionService/HasSession"];
    for path in methods.chain(others.map(str::to_owned)) {
        let answer = raw.send(grpc(&path), message.clone()).await.unwrap();
        unknown.assert(answer.grpc.as_ref().expect("the answer has a status"));
    }

    let compressed = refusal(Code::Unimplemented, "COMPRESSED_REQUEST", None, "grpc-encoding");
    let malformed = refusal(Code::InvalidArgument, "MALFORMED_REQUEST", None, "proto/sessiond/v1");
    let too_large = exhausted("REQUEST_TOO_LARGE", "--max-message-bytes");
    let table: [(&[u8], &Refusal); 8] = [
        (&[1, 0, 0, 0, 0], &compressed),
        (&[0xff, 0, 0, 0, 1, 7], &compressed),
        (&[0, 0xff, 0xff, 0xff, 0xff, 7], &too_large),
        (&[], &malformed),
        (&[0, 0, 0], &malformed),
        (&[0, 0, 0, 0, 9, 1, 2], &malformed),
        (&[0, 0, 0, 0, 2, 0xff, 0xff], &malformed),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &malformed),
    ];
    for (body, refusal) in table {
        for method in ["SessionService/HasSession", "SessionService/Subscribe", "LeaseService/RevokeLease"] {
            let request = grpc(&format!("/sessiond.v1.{method}"));
            let answer = raw.send(request, Bytes::copy_from_slice(body)).await.unwrap();
            refusal.assert(answer.grpc.as_ref().expect("the answer has a status"));
        }
    }
}

#[tokio::test]
async fn a_refused_compressed_request_learns_the_accepted_encoding() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for method in ["HasSession", "Subscribe"] {
        let mut request = grpc(&format!("{SERVICE}/{method}"));
        request.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        let answer = raw.send(request, Bytes::from_static(&[1, 0, 0, 0, 2, 0x1f, 0x8b])).await.unwrap();
        let status = answer.grpc.unwrap();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity", "{method}");
    }
}

#[tokio::test]
async fn every_spelling_of_the_grpc_content_type_is_accepted() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let has = framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 });
    for content_type in
        ["application/grpc", "application/grpc+proto", "application/grpc;x=y", "application/grpc+proto; x=y"]
    {
        let mut request = grpc(&format!("{SERVICE}/HasSession"));
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        let answer = raw.send(request, has.clone()).await.unwrap();
        assert_eq!(answer.grpc.map(|status| status.code()), Some(Code::Ok), "{content_type}");
    }
}

#[tokio::test]
async fn a_closed_subject_refuses_observers_and_serves_calls() {
    let server = Running::start().await;
    let client = server.sessions();
    let mut observed = Observed::now(&client).await;
    // A drain starts with this and then closes connections, which does not happen here.
    server.subject.close();
    let draining = refusal(Code::Unavailable, "SERVER_DRAINING", None, "another replica");
    draining.of(client.clone().subscribe(SubscribeRequest::default())).await;
    assert!(matches!(observed.next().await, sessiond::proto::subscribe_response::Body::Heartbeat(_)));
    assert!(!observed.cursor.is_empty());
    draining.assert(&observed.try_next().await.unwrap_err());
    assert!(create(&client, 0, 1).await);
}
