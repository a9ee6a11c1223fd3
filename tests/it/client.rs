//! The Rust client against a scripted server.

use std::{collections::HashMap, time::Duration};

use sessiond::{
    client::{
        Client, ClientError, EventType, MAX_BATCH, ResetReason, SnapshotSession, Watch, WatchOptions, WatchUpdate,
    },
    proto::{self, SessionEventType, SubscribeRequest, Subscribed, subscribe_request::Start, subscribe_response::Body},
    session::{AuthKeyId, LeaseId, SessionEvent, SessionId, SessionKey},
};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::{self, Fake, created, heartbeat, reset, snapshot, soon, synced};

fn sessions(ids: &[i64]) -> Vec<SessionKey> {
    ids.iter().map(|&id| SessionKey::new(0, id)).collect()
}

/// Returns these sessions as a snapshot without placements reports them.
fn found(ids: &[i64]) -> Vec<SnapshotSession> {
    sessions(ids).into_iter().map(|session| SnapshotSession { session, lease: None }).collect()
}

async fn watching(options: WatchOptions) -> (Fake, Watch) {
    let fake = Fake::start().await;
    let watch = Client::connect_lazy(&fake.addr).unwrap().watch(options);
    (fake, watch)
}

/// Runs the watch and the server's side of it concurrently, because a watch connects only while `next` is polled.
macro_rules! next {
    ($watch:expr, $server:expr) => {{
        let (update, stream) = tokio::join!(soon($watch.next()), $server);
        (update.expect("the watch continues"), stream)
    }};
}

async fn next(watch: &mut Watch) -> WatchUpdate {
    soon(watch.next()).await.expect("the watch continues")
}

macro_rules! assert_update {
    ($update:expr, $pattern:pat $(if $guard:expr)?) => {{
        let update = $update;
        assert!(matches!(&update, $pattern $(if $guard)?), "{update:?}");
    }};
}

fn start(request: &SubscribeRequest) -> Option<Start> {
    request.start.clone()
}

#[test]
fn clients_are_sync_and_watches_are_send() {
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    fn moves<T: Send + 'static>() {}
    is_shared::<Client>();
    moves::<Watch>();
    moves::<WatchUpdate>();
    moves::<ClientError>();
}

#[tokio::test]
async fn calls_reach_the_registry() {
    let fake = Fake::start().await;
    let client = Client::connect_lazy(&fake.addr).unwrap();
    let key = SessionKey::new(-1, i64::MIN);
    assert!(client.create(key).await.unwrap());
    assert!(!client.create(key).await.unwrap());
    assert!(client.has(key).await.unwrap());
    assert!(!client.has(SessionKey::new(0, i64::MIN)).await.unwrap());
    assert!(client.destroy(key).await.unwrap());
    assert!(!client.destroy(key).await.unwrap());
    assert!(!client.has(key).await.unwrap());
}

#[tokio::test]
async fn long_batches_are_split_in_order() {
    let fake = Fake::start().await;
    let client = Client::connect_lazy(&fake.addr).unwrap();
    let ids: Vec<i64> = (0..).take(MAX_BATCH + 10).collect();
    let odd: Vec<i64> = ids.iter().copied().filter(|id| id % 2 == 1).collect();
    assert!(client.batch_create(&sessions(&odd)).await.unwrap().iter().all(|&created| created));
    let exists = client.batch_has(&sessions(&ids)).await.unwrap();
    assert_eq!(exists, ids.iter().map(|id| id % 2 == 1).collect::<Vec<_>>());
    assert_eq!(client.batch_destroy(&sessions(&[1, 2])).await.unwrap(), [true, false]);
    assert_eq!(client.batch_has(&[SessionKey::new(9, 3), SessionKey::new(0, 3)]).await.unwrap(), [false, true]);
    assert!(client.batch_has(&[]).await.unwrap().is_empty());
    let batches = [(odd.len(), false), (MAX_BATCH, false), (10, false), (2, false), (2, true)];
    assert_eq!(fake.batches(), batches);
}

#[tokio::test]
async fn errors_say_whether_and_when_a_retry_helps() {
    let fake = Fake::start().await;
    let client = Client::builder(&fake.addr).unwrap().timeout(Duration::from_millis(200)).connect_lazy().unwrap();
    let mut details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
    details.set_error_info("DRAINING", "sessiond", HashMap::new());
    fake.refuse(Status::with_error_details(Code::Unavailable, "draining", details));
    let error = client.has(SessionKey::new(0, 1)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Status(status) if status.code() == Code::Unavailable), "{error}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
    assert_eq!(error.reason().as_deref(), Some("DRAINING"));

    fake.stop_answering();
    let error = soon(client.has(SessionKey::new(0, 1))).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(error.is_retryable());

    let unreachable = Client::connect_lazy(&fake::nowhere().await).unwrap();
    let error = soon(unreachable.has(SessionKey::new(0, 1))).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_watch_sends_its_options() {
    let options = WatchOptions::after("c9")
        .session_ids([SessionId(-5)])
        .auth_key_ids([AuthKeyId(6)])
        .lease_ids([LeaseId::from_number(7).unwrap()])
        .types([EventType::Destroyed, EventType::Moved])
        .placements()
        .heartbeat(Duration::from_millis(1500));
    let (mut fake, mut watch) = watching(options).await;
    assert_eq!(watch.cursor(), Some("c9"));
    let (update, call) = next!(watch, async {
        let call = fake.stream().await;
        let request = call.request.clone();
        (call.accept("c9").await, request)
    });
    assert_update!(update, WatchUpdate::Subscribed { registry_id, heartbeat, cursor }
        if registry_id == "fake" && *heartbeat == Duration::from_secs(15) && cursor == "c9");
    let expected = SubscribeRequest {
        session_ids: vec![-5],
        auth_key_ids: vec![6],
        lease_ids: vec![7],
        types: vec![SessionEventType::Destroyed.into(), SessionEventType::Moved.into()],
        placements: true,
        heartbeat: Some(fake::duration(Duration::from_millis(1500))),
        start: Some(Start::Cursor("c9".to_owned())),
    };
    assert_eq!(call.1, expected);
}

#[tokio::test]
async fn a_broken_watch_resumes_after_its_last_update() {
    let (mut fake, mut watch) = watching(WatchOptions::default()).await;
    assert_eq!(watch.cursor(), None);
    let (_, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), None);
        call.accept("c0").await
    });
    assert_eq!(watch.cursor(), Some("c0"));
    stream.send("c1", created(&[1, 2])).await;
    let event = |id| SessionEvent::created(SessionKey::new(7, id), None);
    assert_update!(next(&mut watch).await, WatchUpdate::Events(events) if *events == [event(1), event(2)]);
    stream.send("c2", heartbeat()).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Heartbeat);
    stream.fail(Status::unavailable("draining")).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { error: ClientError::Status(_), .. });
    assert_eq!(watch.cursor(), Some("c2"));

    // The watch also resumes after a stream that ends without a status, and after one that is refused.
    let (update, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Cursor("c2".to_owned())));
        call.accept("c2").await
    });
    assert_update!(update, WatchUpdate::Subscribed { .. });
    drop(stream);
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { error: ClientError::StreamEnded, .. });
    let (update, ()) = next!(watch, async { fake.stream().await.refuse(Status::resource_exhausted("observers")) });
    assert_update!(update, WatchUpdate::Disconnected { error: ClientError::Status(_), .. });
    let (_, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Cursor("c2".to_owned())));
        call.accept("c2").await
    });
    stream.send("c3", created(&[3])).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Events(events) if *events == [event(3)]);

    drop(watch);
    stream.gone().await;
}

#[tokio::test]
async fn an_interrupted_snapshot_starts_again_after_a_reset() {
    let (mut fake, mut watch) = watching(WatchOptions::snapshot()).await;
    let (_, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Snapshot(true)));
        call.accept("c0").await
    });
    assert_eq!(watch.cursor(), Some("c0"));
    stream.send("", snapshot(&[1])).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Snapshot(held) if *held == found(&[1]));
    assert_eq!(watch.cursor(), None);
    drop(stream);
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { .. });

    // The watch still reports the reset if the next stream is refused.
    let (update, ()) = next!(watch, async { fake.stream().await.refuse(Status::unavailable("starting")) });
    assert_update!(update, WatchUpdate::Disconnected { .. });
    let (update, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Snapshot(true)));
        call.accept("c5").await
    });
    assert_update!(update, WatchUpdate::Subscribed { .. });
    assert_eq!(watch.cursor(), None, "the caller still holds part of the first snapshot");
    assert_update!(next(&mut watch).await, WatchUpdate::Reset(ResetReason::SnapshotInterrupted));
    assert_eq!(watch.cursor(), Some("c5"));
    stream.send("", snapshot(&[1, 2])).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Snapshot(held) if *held == found(&[1, 2]));
    stream.send("c6", synced(2)).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Synced { session_count: 2 });
    assert_eq!(watch.cursor(), Some("c6"));

    // A reset from the server also starts a snapshot.
    stream.send("", reset(proto::ResetReason::Lagged)).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Reset(ResetReason::Lagged));
    drop(stream);
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { .. });
    let (_, _stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Snapshot(true)));
        call.accept("c7").await
    });
    assert_update!(next(&mut watch).await, WatchUpdate::Reset(ResetReason::SnapshotInterrupted));
}

#[tokio::test]
async fn a_snapshot_interrupted_before_its_first_session_needs_no_reset() {
    let (mut fake, mut watch) = watching(WatchOptions::snapshot()).await;
    let (_, stream) = next!(watch, async { fake.stream().await.accept("c0").await });
    drop(stream);
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { .. });
    let (update, stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Cursor("c0".to_owned())));
        call.accept("c0").await
    });
    assert_update!(update, WatchUpdate::Subscribed { .. });
    stream.send("", snapshot(&[1])).await;
    assert_update!(next(&mut watch).await, WatchUpdate::Snapshot(_));
}

#[tokio::test]
async fn a_watch_waits_as_long_as_retry_info_asks() {
    let (mut fake, mut watch) = watching(WatchOptions::default()).await;
    let wish = Duration::from_millis(400);
    let details = ErrorDetails::with_retry_info(Some(wish));
    let status = Status::with_error_details(Code::Unavailable, "draining", details);
    let (update, ()) = next!(watch, async { fake.stream().await.refuse(status) });
    assert_update!(update, WatchUpdate::Disconnected { retry_in, .. } if *retry_in == wish);
    let lost = Instant::now();
    let (_, _stream) = next!(watch, async { fake.stream().await.accept("c0").await });
    assert!(lost.elapsed() >= wish - Duration::from_millis(50), "{:?}", lost.elapsed());
}

#[tokio::test]
async fn a_watch_gives_up_a_stream_without_heartbeats() {
    let (mut fake, mut watch) = watching(WatchOptions::default()).await;
    let heartbeat = Some(fake::duration(Duration::from_millis(100)));
    let subscribed = Body::Subscribed(Subscribed { registry_id: "fake".to_owned(), heartbeat, ..Default::default() });
    let (_, stream) = next!(watch, async {
        let stream = fake.stream().await.accept_in_silence();
        stream.send("c0", subscribed).await;
        stream
    });
    let last_message = Instant::now();
    assert_update!(next(&mut watch).await, WatchUpdate::Disconnected { error: ClientError::Silent { .. }, .. });
    assert!(last_message.elapsed() >= Duration::from_secs(1), "{:?}", last_message.elapsed());
    stream.gone().await;
    let (_, _stream) = next!(watch, async {
        let call = fake.stream().await;
        assert_eq!(start(&call.request), Some(Start::Cursor("c0".to_owned())));
        call.accept("c0").await
    });
}

#[tokio::test]
async fn a_watch_gives_up_a_stream_that_does_not_open() {
    let mut fake = Fake::start().await;
    let client = Client::builder(&fake.addr).unwrap().timeout(Duration::from_millis(200)).connect_lazy().unwrap();
    let mut watch = client.watch(WatchOptions::default());
    let (update, _unanswered) = next!(watch, fake.stream());
    assert_update!(update, WatchUpdate::Disconnected { error: ClientError::Timeout { .. }, .. });
    // Headers alone are not enough: the server sends `subscribed` immediately.
    let (update, _silent) = next!(watch, async { fake.stream().await.accept_in_silence() });
    assert_update!(update, WatchUpdate::Disconnected { error: ClientError::Silent { .. }, .. });
}

#[tokio::test]
async fn permanent_errors_end_the_watch() {
    let mut fake = Fake::start().await;
    let client = Client::connect_lazy(&fake.addr).unwrap();
    for code in [
        Code::InvalidArgument,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::Unimplemented,
        Code::FailedPrecondition,
    ] {
        let mut watch = client.watch(WatchOptions::default());
        let refusing = async { fake.stream().await.refuse(Status::new(code, "no")) };
        let (end, ()) = tokio::join!(soon(watch.next()), refusing);
        let error = end.unwrap_err();
        assert!(matches!(&error, ClientError::Status(status) if status.code() == code), "{error}");
    }
    let mut watch = client.watch(WatchOptions::default());
    let confused = async {
        let stream = fake.stream().await.accept_in_silence();
        stream.send("c1", created(&[1])).await;
        stream
    };
    let (end, _stream) = tokio::join!(soon(watch.next()), confused);
    assert!(matches!(end, Err(ClientError::Protocol(_))), "{end:?}");
    // The caller may still try again.
    let (update, _stream) = next!(watch, async { fake.stream().await.accept("c0").await });
    assert_update!(update, WatchUpdate::Subscribed { .. });
}

#[tokio::test]
async fn a_watch_retries_an_unreachable_server() {
    let mut watch = Client::connect_lazy(&fake::nowhere().await).unwrap().watch(WatchOptions::default());
    for _ in 0..3 {
        assert_update!(
            next(&mut watch).await,
            WatchUpdate::Disconnected { error: ClientError::Unreachable(_), retry_in }
                if *retry_in >= Duration::from_millis(10)
        );
    }
}

#[tokio::test]
async fn waiting_for_an_update_can_be_cancelled_at_any_point() {
    let (mut fake, mut watch) = watching(WatchOptions::default()).await;
    let server = tokio::spawn(async move {
        for round in 0..3_i64 {
            let stream = fake.stream().await.accept("c").await;
            for id in 0..50 {
                stream.send("c", created(&[round * 50 + id])).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 150 {
        // Polls once. Dropping the future at its first pause loses no update and does not restart the connection.
        tokio::select! {
            biased;
            update = watch.next() => {
                if let WatchUpdate::Events(events) = update.unwrap() {
                    seen.extend(events.iter().map(|event| event.session.session_id.0));
                }
            }
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(seen.into_iter().eq(0..150));
    soon(server).await.unwrap();
}
