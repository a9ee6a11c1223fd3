//! Streams with placements, over the wire.

use std::time::{Duration, Instant};

use sessiond::{
    proto::{
        BatchCreateSessionsRequest, CreateSessionRequest, DestroyReason, DestroySessionRequest, SessionEvent,
        SessionEventType, SubscribeRequest, SubscribeResponse, subscribe_request::Start, subscribe_response::Body,
    },
    session::{LeaseId, SessionKey},
    subject::Filter,
};
use tonic::Streaming;

use crate::{
    fake::soon,
    held::Held,
    leases::{grant, revoke},
    observed::{Observed, apply_filtered, hold},
    server::{Running, Sessions},
};

const LONG: Duration = Duration::from_secs(3600);

/// An observer with placements that maps each session it holds to its lease.
pub(crate) struct Mirror {
    stream: Streaming<SubscribeResponse>,
    pub(crate) held: Held,
    filter: Filter,
    events: Vec<SessionEvent>,
    /// The last place received for partition 0.
    position: u64,
}

impl Mirror {
    /// Subscribes with a snapshot and reads it up to `synced`.
    pub(crate) async fn synced(client: &Sessions, leases: &[u64]) -> Self {
        let request = SubscribeRequest {
            start: Some(Start::Snapshot(true)),
            placements: leases.is_empty(),
            lease_ids: leases.to_vec(),
            ..Default::default()
        };
        let stream = soon(client.clone().subscribe(request)).await.unwrap().into_inner();
        let filter = Filter::default().lease_ids(leases.iter().filter_map(|lease| LeaseId::from_number(*lease)));
        let mut mirror = Self { stream, held: Held::new(), filter, events: Vec::new(), position: 0 };
        loop {
            match mirror.message().await {
                Body::Synced(synced) => {
                    assert_eq!(synced.session_count, mirror.held.len() as u64);
                    mirror.position = synced.places[0].position;
                    return mirror;
                }
                Body::Snapshot(snapshot) => {
                    let is_watched = |lease| leases.is_empty() || leases.contains(&lease);
                    assert!(snapshot.sessions.iter().all(|session| is_watched(session.lease_id)));
                    hold(&mut mirror.held, &snapshot.sessions);
                }
                Body::Subscribed(subscribed) => assert_eq!(subscribed.places.len(), 1),
                Body::Events(events) => mirror.apply(events.events),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn message(&mut self) -> Body {
        soon(self.stream.message()).await.unwrap().unwrap().body.unwrap()
    }

    fn apply(&mut self, events: Vec<SessionEvent>) {
        apply_filtered(&mut self.held, &events, &self.filter);
        self.events.extend(events);
    }

    /// Reads until it has received `count` events in total. Returns those that this call read.
    pub(crate) async fn reaches(&mut self, count: usize) -> Vec<SessionEvent> {
        let known = self.events.len();
        while self.events.len() < count {
            match self.message().await {
                Body::Events(events) => {
                    let place = events.place.expect("events carry a place");
                    assert!(place.position > self.position, "places only grow");
                    self.position = place.position;
                    self.apply(events.events);
                }
                Body::Heartbeat(heartbeat) => assert_eq!(heartbeat.places.len(), 1),
                other => panic!("{other:?}"),
            }
        }
        self.events[known..].to_vec()
    }
}

/// Returns what an observer with placements holds if these sessions are under `lease`.
pub(crate) fn under(lease: u64, ids: impl IntoIterator<Item = i64>) -> Held {
    ids.into_iter().map(|id| (SessionKey::new(0, id), LeaseId::from_number(lease))).collect()
}

pub(crate) async fn put(client: &Sessions, ids: std::ops::Range<i64>, lease_id: u64) {
    let request = BatchCreateSessionsRequest { session_ids: ids.collect(), lease_id, ..Default::default() };
    soon(client.clone().batch_create_sessions(request)).await.unwrap();
}

pub(crate) async fn destroy(client: &Sessions, id: i64, lease_id: u64) -> bool {
    let request = DestroySessionRequest { session_id: Some(id), lease_id, ..Default::default() };
    soon(client.clone().destroy_session(request)).await.unwrap().into_inner().destroyed
}

#[tokio::test]
async fn a_stream_with_placements_reports_the_lease_of_each_session() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, LONG).await, grant(&leases, LONG).await);
    put(&writer, 0..10, a).await;
    put(&writer, 10..20, 0).await;
    let mut mirror = Mirror::synced(&server.sessions(), &[]).await;
    let mut late = Mirror::synced(&server.sessions(), &[]).await;
    put(&writer, 5..15, b).await;
    assert!(destroy(&writer, 0, a).await && destroy(&writer, 5, 0).await);
    revoke(&leases, a).await.unwrap();
    let events = mirror.reaches(16).await;
    let moved = |event: &SessionEvent| (event.previous_lease_id, event.lease_id);
    assert!(events[..5].iter().all(|event| moved(event) == (a, b)), "{events:?}");
    assert!(events[5..10].iter().all(|event| moved(event) == (0, b)), "{events:?}");
    assert_eq!((events[10].reason(), events[10].lease_id), (DestroyReason::Released, a));
    assert_eq!((events[11].reason(), events[11].lease_id), (DestroyReason::Requested, b));
    assert!(events[12..].iter().all(|event| (event.reason(), event.lease_id) == (DestroyReason::LeaseRevoked, a)));
    let mut expected = under(b, 6..15);
    expected.extend(under(0, 15..20));
    assert_eq!(mirror.held, expected);
    late.reaches(16).await;
    assert_eq!(late.held, expected);
    assert_eq!(Mirror::synced(&server.sessions(), &[]).await.held, expected);
}

#[tokio::test]
async fn a_stream_by_lease_reports_sessions_that_enter_and_leave_the_lease() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let [a, b, c] = [grant(&leases, LONG).await, grant(&leases, LONG).await, grant(&leases, LONG).await];
    put(&writer, 0..10, a).await;
    put(&writer, 10..20, b).await;
    let mut own = Mirror::synced(&server.sessions(), &[a]).await;
    let mut both = Mirror::synced(&server.sessions(), &[a, b]).await;
    assert_eq!((own.held.len(), both.held.len()), (10, 20));
    // A move from a to b, one from b to a, one from a to c, and sessions under c alone.
    put(&writer, 0..1, b).await;
    put(&writer, 10..11, a).await;
    put(&writer, 1..2, c).await;
    put(&writer, 30..40, c).await;
    assert!(destroy(&writer, 2, 0).await);
    revoke(&leases, a).await.unwrap();
    own.reaches(4 + 8).await;
    both.reaches(4 + 8).await;
    assert!(own.held.is_empty());
    assert_eq!(both.held, under(b, [0].into_iter().chain(11..20)));
}

#[tokio::test]
async fn streams_without_placements_do_not_report_moves() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, LONG).await, grant(&leases, LONG).await);
    let mut plain = Observed::now(&server.sessions()).await;
    let mut placed = Mirror::synced(&server.sessions(), &[]).await;
    put(&writer, 0..2, a).await;
    put(&writer, 0..2, b).await;
    assert!(destroy(&writer, 0, b).await);
    let create = CreateSessionRequest { session_id: Some(7), lease_id: a, ..Default::default() };
    soon(writer.clone().create_session(create)).await.unwrap();
    placed.reaches(6).await;
    let received = plain.events(4).await;
    let types: Vec<_> = received.iter().map(|event| (event.session_id, event.r#type(), event.reason())).collect();
    let created = |id| (id, SessionEventType::Created, DestroyReason::Unspecified);
    let destroyed = (0, SessionEventType::Destroyed, DestroyReason::Requested);
    assert_eq!(types, [created(0), created(1), destroyed, created(7)]);
    assert!(received.iter().all(|event| (event.lease_id, event.previous_lease_id) == (0, 0)));
}

#[tokio::test]
async fn a_gateway_learns_within_100_ms_that_its_session_was_destroyed() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let a = grant(&leases, LONG).await;
    put(&writer, 0..1, a).await;
    let mut own = Mirror::synced(&server.sessions(), &[a]).await;
    put(&writer, 1..21, a).await;
    own.reaches(20).await;
    let mut delays = Vec::new();
    for id in 0..21 {
        let began = Instant::now();
        assert!(destroy(&writer, id, 0).await);
        let events = own.reaches(21 + id as usize).await;
        delays.push(began.elapsed());
        assert_eq!((events[0].reason(), events[0].lease_id), (DestroyReason::Requested, a));
    }
    delays.sort_unstable();
    // Only the fastest quarter must be in time, because other load on the machine may delay the rest.
    assert!(delays[5] < Duration::from_millis(100), "{delays:?}");
}
