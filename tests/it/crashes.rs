//! Kills the server at random moments, again and again, while eight writers change the registry, four gateways grant
//! and end leases, and sixteen observers follow.
//!
//! `SESSIOND_TEST_CRASHES` sets the number of kills: 60 by default.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sessiond::{
    proto::{
        BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest, BatchLookupSessionsRequest,
        CreateSessionRequest, DestroyReason, DestroySessionRequest, GrantLeaseRequest, KeepLeaseAliveRequest,
        RevokeLeaseRequest, SessionEvent, SubscribeRequest, lease_service_client::LeaseServiceClient,
        subscribe_request::Start, subscribe_response::Body,
    },
    session::SessionKey,
};
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    fake::{duration, soon},
    held::Held,
    observed::{Observed, apply, hold},
    program::Program,
    server::Sessions,
    sessions::create,
};

/// Whether each session exists, according to the answers that callers received. `None` while a change to the session is
/// unanswered.
type Known = Arc<Mutex<BTreeMap<i64, Option<bool>>>>;

/// The leases of the gateways.
type Leases = Arc<Mutex<BTreeMap<u64, KnownLease>>>;

/// What a gateway knows about a lease.
#[derive(Clone, Debug, Default)]
struct KnownLease {
    /// Sessions that are certainly under the lease: the create was answered, and no move was requested.
    sure: Vec<i64>,
    /// Sessions that may be under the lease: a call about them was not answered.
    unsure: Vec<i64>,
    /// The lease may have ended: its ttl is short, or a revoke was requested.
    may_end: bool,
    /// A linger was requested.
    may_linger: bool,
    /// The request to linger was answered.
    lingers: bool,
    /// An answer reported that the lease has ended.
    ended: bool,
}

const WRITERS: i64 = 8;
const GATEWAYS: usize = 4;
const OBSERVERS: usize = 16;

/// One in this many runs of the server is long enough for leases to expire.
const LONG_LIFE: u32 = 20;

/// Changes the writer's own sessions until the server is gone.
async fn write(client: Sessions, known: Known, writer: i64) -> Status {
    let mut client = client;
    loop {
        let id = WRITERS * fastrand::i64(0..50) + writer;
        known.lock().insert(id, None);
        let session_id = Some(id);
        let exists = fastrand::bool();
        let answer = if exists {
            client.create_session(CreateSessionRequest { session_id, ..Default::default() }).await.map(drop)
        } else {
            client.destroy_session(DestroySessionRequest { session_id, ..Default::default() }).await.map(drop)
        };
        match answer {
            Ok(()) => drop(known.lock().insert(id, Some(exists))),
            Err(status) => return status,
        }
    }
}

/// Grants and ends leases with sessions under them until the server is gone.
async fn churn_leases(channel: Channel, held: Leases, next: Arc<AtomicI64>) -> Status {
    loop {
        if let Err(status) = use_two_leases(&channel, &held, &next).await {
            return status;
        }
    }
}

/// Creates sessions under a lease, moves half of them to a second lease, and revokes both leases or lets the first
/// expire.
async fn use_two_leases(channel: &Channel, held: &Leases, next: &AtomicI64) -> Result<(), Status> {
    let (mut sessions, mut leases) = (Sessions::new(channel.clone()), LeaseServiceClient::new(channel.clone()));
    let expires = fastrand::bool();
    let mut grant = async |may_end: bool| {
        let ttl = Some(duration(Duration::from_secs(if may_end { 1 } else { 3600 })));
        let granted = leases.grant_lease(GrantLeaseRequest { ttl, owner: "gateway".to_owned() }).await?;
        let lease = granted.into_inner().lease_id;
        held.lock().insert(lease, KnownLease { may_end, ..KnownLease::default() });
        Ok::<_, Status>(lease)
    };
    let (old, new) = (grant(expires).await?, grant(false).await?);
    let first = next.fetch_add(50, Ordering::Relaxed);
    let ids: Vec<i64> = (first..first + 50).collect();
    let (moving, staying) = ids.split_at(25);
    let mut come = async |lease_id: u64, session_ids: &[i64], only_from_lease_id: Option<u64>| {
        let batch = BatchCreateSessionsRequest {
            session_ids: session_ids.to_vec(),
            lease_id,
            only_from_lease_id,
            ..Default::default()
        };
        sessions.batch_create_sessions(batch).await.map(drop)
    };
    held.lock().entry(old).or_default().unsure = ids.clone();
    // The lease may expire before its sessions are created.
    if let Err(status) = come(old, &ids, None).await {
        return if gone(&status, old, held) && expires { Ok(()) } else { Err(status) };
    }
    *held.lock().entry(old).or_default() =
        KnownLease { sure: staying.to_vec(), unsure: moving.to_vec(), may_end: expires, ..KnownLease::default() };
    held.lock().entry(new).or_default().unsure = moving.to_vec();
    // If the old lease has expired by now, this creates the sessions again.
    come(new, moving, fastrand::bool().then_some(old)).await?;
    held.lock().entry(new).or_default().sure = moving.to_vec();
    let session_ids = moving.to_vec();
    let late = BatchDestroySessionsRequest { session_ids, lease_id: old, ..Default::default() };
    let destroyed = Sessions::new(channel.clone()).batch_destroy_sessions(late).await?.into_inner().destroyed;
    assert!(!destroyed.contains(&true), "a late destroy under the old lease destroyed sessions that had moved");
    for lease_id in [old, new].into_iter().skip(usize::from(expires)) {
        if fastrand::bool() {
            held.lock().entry(lease_id).or_default().may_linger = true;
            let linger = Some(duration(Duration::from_secs(3600)));
            leases.revoke_lease(RevokeLeaseRequest { lease_id, linger }).await?;
            held.lock().entry(lease_id).or_default().lingers = true;
        }
        held.lock().entry(lease_id).or_default().may_end = true;
        leases.revoke_lease(RevokeLeaseRequest { lease_id, linger: None }).await?;
        held.lock().entry(lease_id).or_default().ended = true;
        let status =
            leases.keep_lease_alive(KeepLeaseAliveRequest { lease_id }).await.expect_err("the lease has ended");
        if !gone(&status, lease_id, held) {
            return Err(status);
        }
    }
    Ok(())
}

/// Returns whether the status says that the lease is gone, and records it.
fn gone(status: &Status, lease: u64, held: &Leases) -> bool {
    let is_gone = matches!(status.code(), Code::NotFound | Code::FailedPrecondition);
    held.lock().entry(lease).or_default().ended |= is_gone;
    is_gone
}

async fn exist(client: &Sessions, session_ids: &[i64]) -> Vec<bool> {
    let request = BatchHasSessionsRequest { session_ids: session_ids.to_vec(), ..Default::default() };
    soon(client.clone().batch_has_sessions(request)).await.unwrap().into_inner().exists
}

/// Returns the lease that each session is under.
async fn holders(client: &Sessions, session_ids: &[i64]) -> Vec<u64> {
    let request = BatchLookupSessionsRequest { session_ids: session_ids.to_vec(), ..Default::default() };
    soon(client.clone().batch_lookup_sessions(request)).await.unwrap().into_inner().lease_ids
}

/// Checks the registry against every answer, and records the state of sessions whose last change was unanswered.
async fn check_answers(client: &Sessions, known: &Known) {
    let ids: Vec<i64> = known.lock().keys().copied().collect();
    for (id, exists) in ids.iter().zip(exist(client, &ids).await) {
        let answered = known.lock().insert(*id, Some(exists)).flatten();
        assert!(answered.is_none_or(|known| known == exists), "session {id}: answered {answered:?}, now {exists}");
    }
}

/// Checks that every lease whose end was reported has ended, and that every other lease still has its sessions. Then
/// revokes all leases.
async fn check_leases(
    client: &Sessions,
    channel: Channel,
    leases: BTreeMap<u64, KnownLease>,
    received: &[SessionEvent],
) {
    let ended: BTreeSet<i64> = received
        .iter()
        .filter(|event| matches!(event.reason(), DestroyReason::LeaseExpired | DestroyReason::LeaseRevoked))
        .map(|event| event.session_id)
        .collect();
    let mut service = LeaseServiceClient::new(channel);
    for (lease_id, held) in &leases {
        let is_reported = held.ended || held.sure.iter().any(|session| ended.contains(session));
        let kept = soon(service.keep_lease_alive(KeepLeaseAliveRequest { lease_id: *lease_id })).await;
        let lingers = kept.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition);
        match kept {
            Err(_) if lingers => assert!(held.may_linger && !is_reported, "lease {lease_id} lingers: {held:?}"),
            Ok(_) => assert!(!is_reported && !held.lingers, "lease {lease_id} is alive again: {held:?}"),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound);
                assert!(held.may_end, "lease {lease_id} is gone, but nothing ended it");
                continue;
            }
        }
        let holders = holders(client, &held.sure).await;
        assert!(holders.iter().all(|holder| holder == lease_id), "lease {lease_id} lost sessions: {holders:?}");
    }
    for lease_id in leases.keys() {
        // The lease may have expired by now.
        let _ = soon(service.revoke_lease(RevokeLeaseRequest { lease_id: *lease_id, linger: None })).await;
    }
    let sessions: Vec<i64> = leases.into_values().flat_map(|held| [held.sure, held.unsure].concat()).collect();
    soon(async { while exist(client, &sessions).await.contains(&true) {} }).await;
}

/// What one observer has received.
#[derive(Clone, Default)]
struct Observer {
    /// Whether its stream has placements.
    is_placed: bool,
    view: Held,
    cursor: String,
    /// The events received since the observers were last compared.
    received: Vec<SessionEvent>,
}

impl Observer {
    fn apply(&mut self, events: Vec<SessionEvent>) {
        apply(&mut self.view, &events);
        self.received.extend(events);
    }

    fn request(&self) -> SubscribeRequest {
        SubscribeRequest { placements: self.is_placed, ..Default::default() }
    }

    async fn resume(&self, client: &Sessions) -> Observed {
        let start = (!self.cursor.is_empty()).then(|| Start::Cursor(self.cursor.clone()));
        Observed::start(client, SubscribeRequest { start, ..self.request() }).await
    }

    /// Reads a snapshot with a new stream.
    async fn snapshot(&self, client: &Sessions) -> Held {
        let request = SubscribeRequest { start: Some(Start::Snapshot(true)), ..self.request() };
        let mut observed = Observed::start(client, request).await;
        let mut new = Self { is_placed: self.is_placed, ..Self::default() };
        loop {
            match observed.next().await {
                Body::Snapshot(part) => hold(&mut new.view, &part.sessions),
                Body::Events(body) => new.apply(body.events),
                Body::Synced(_) => return new.view,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Follows the registry until the server is gone.
async fn observe(mut observed: Observed, mut observer: Observer) -> Observer {
    while let Ok(body) = observed.try_next().await {
        match body {
            Body::Events(body) => observer.apply(body.events),
            Body::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
        observer.cursor.clone_from(&observed.cursor);
    }
    observer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answered_change_is_lost_when_the_server_is_killed() {
    let crashes: u32 = std::env::var("SESSIOND_TEST_CRASHES").map_or(60, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let storage = format!("file:{}", folder.path().join("registry").display());
    let args = ["--storage", &storage, "--retain-events", "20000", "--outage-grace", "1s"];
    let (known, leases) = (Known::default(), Leases::default());
    let next = Arc::new(AtomicI64::new(1_000_000));
    let new = |n| Observer { is_placed: n % 2 == 1, ..Observer::default() };
    let mut observers: Vec<Observer> = (0..OBSERVERS).map(new).collect();
    for crash in 0..=crashes {
        let program = Program::start(&args).await;
        let client = program.sessions();
        let channel = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
        // Before the kill, some observers may have received more events than others.
        let mut streams = Vec::new();
        for observer in &observers {
            streams.push(observer.resume(&client).await);
        }
        check_answers(&client, &known).await;
        let received: Vec<_> = observers.iter().flat_map(|observer| observer.received.iter().cloned()).collect();
        let left = mem::take(&mut *leases.lock());
        check_leases(&client, channel.clone(), left, &received).await;

        // An observer that has received this event has received all earlier ones.
        let marker = -1 - i64::from(crash);
        assert!(create(&client, 0, marker).await);
        for (observer, stream) in observers.iter_mut().zip(&mut streams) {
            while !observer.view.contains_key(&SessionKey::new(0, marker)) {
                observer.apply(stream.more_events().await);
            }
            observer.cursor.clone_from(&stream.cursor);
        }
        for n in 0..2 {
            let received = observers[n].received.clone();
            let snapshot = observers[n].snapshot(&client).await;
            for observer in observers.iter_mut().skip(n).step_by(2) {
                assert!(mem::take(&mut observer.received) == received, "two observers differ after crash {crash}");
                assert!(observer.view == snapshot, "a view differs after crash {crash}");
            }
        }

        let mut running = JoinSet::new();
        let mut observing = Vec::new();
        for (stream, observer) in streams.into_iter().zip(observers) {
            observing.push(tokio::spawn(observe(stream, observer)));
        }
        for writer in 0..WRITERS {
            running.spawn(write(client.clone(), Arc::clone(&known), writer));
        }
        for _ in 0..GATEWAYS {
            running.spawn(churn_leases(channel.clone(), Arc::clone(&leases), Arc::clone(&next)));
        }
        let is_long = crash % LONG_LIFE == LONG_LIFE - 1;
        let life = if is_long { 1_500_000..2_000_000 } else { 0..60_000 };
        tokio::time::sleep(Duration::from_micros(fastrand::u64(life))).await;
        program.crash().await;
        for status in soon(running.join_all()).await {
            assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{status:?}");
        }
        observers = Vec::new();
        for observing in observing {
            observers.push(soon(observing).await.unwrap());
        }
    }
}
