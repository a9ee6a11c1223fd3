//! The server is killed at random moments, again and again, while many change the registry and one observes it.
//!
//! `SESSIOND_TEST_CRASHES` says how often: 100 times by default.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sessiond::proto::lease_service_client::LeaseServiceClient;
use sessiond::proto::{
    BatchCreateSessionsRequest, BatchHasSessionsRequest, CreateSessionRequest, DestroySessionRequest,
    GrantLeaseRequest, KeepLeaseAliveRequest, RevokeLeaseRequest, subscribe_response::Body,
};
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    fake::{duration, soon},
    observed::{Key, Observed, apply},
    program::Program,
    server::Sessions,
    sessions::create,
};

/// Whether a session exists, as far as callers were told; none when a call that would change it was not answered.
type Told = Arc<Mutex<BTreeMap<i64, Option<bool>>>>;

/// What a gateway was doing when the server was killed.
#[derive(Clone, Default)]
struct Gateway {
    lease: u64,
    sessions: Vec<i64>,
    created: bool,
    revoking: bool,
}

const WRITERS: i64 = 8;

/// Changes sessions of its own until the server is gone.
async fn write(client: Sessions, told: Told, writer: i64) -> Status {
    let mut client = client;
    loop {
        let id = WRITERS * fastrand::i64(0..50) + writer;
        told.lock().insert(id, None);
        let session_id = Some(id);
        let exists = fastrand::bool();
        let answer = if exists {
            client.create_session(CreateSessionRequest { session_id, ..Default::default() }).await.map(drop)
        } else {
            client.destroy_session(DestroySessionRequest { session_id, ..Default::default() }).await.map(drop)
        };
        match answer {
            Ok(()) => drop(told.lock().insert(id, Some(exists))),
            Err(status) => return status,
        }
    }
}

/// Comes and goes with a lease and some sessions until the server is gone.
async fn come_and_go(channel: Channel, gateway: Arc<Mutex<Gateway>>, next: Arc<AtomicI64>) -> Status {
    let (mut sessions, mut leases) = (Sessions::new(channel.clone()), LeaseServiceClient::new(channel));
    let round = async || -> Result<(), Status> {
        *gateway.lock() = Gateway::default();
        let ttl = Some(duration(Duration::from_secs(3600)));
        let granted = leases.grant_lease(GrantLeaseRequest { ttl, owner: "gateway".to_owned() }).await?;
        let lease_id = granted.into_inner().lease_id;
        let first = next.fetch_add(50, Ordering::Relaxed);
        let session_ids: Vec<i64> = (first..first + 50).collect();
        *gateway.lock() = Gateway { lease: lease_id, sessions: session_ids.clone(), ..Gateway::default() };
        let batch = BatchCreateSessionsRequest { session_ids, lease_id, ..Default::default() };
        sessions.batch_create_sessions(batch).await?;
        gateway.lock().created = true;
        gateway.lock().revoking = true;
        leases.revoke_lease(RevokeLeaseRequest { lease_id }).await?;
        Ok(())
    };
    let mut round = round;
    loop {
        if let Err(status) = round().await {
            return status;
        }
    }
}

async fn exist(client: &Sessions, session_ids: &[i64]) -> Vec<bool> {
    let request = BatchHasSessionsRequest { session_ids: session_ids.to_vec(), ..Default::default() };
    soon(client.clone().batch_has_sessions(request)).await.unwrap().into_inner().exists
}

/// Holds the registry to what callers were told, and takes what it is for what they were not.
async fn check_told(client: &Sessions, told: &Told) {
    let ids: Vec<i64> = told.lock().keys().copied().collect();
    for (id, exists) in ids.iter().zip(exist(client, &ids).await) {
        let was_told = told.lock().insert(*id, Some(exists)).flatten();
        assert!(was_told.is_none_or(|told| told == exists), "{id} was told to exist: {was_told:?}, and does: {exists}");
    }
}

/// A gateway whose lease is there has its sessions; one whose lease has ended has none for long.
async fn check_gateway(client: &Sessions, channel: Channel, gateway: Gateway) {
    let Gateway { lease: lease_id @ 1.., sessions, created, revoking } = gateway else { return };
    let mut leases = LeaseServiceClient::new(channel);
    match soon(leases.keep_lease_alive(KeepLeaseAliveRequest { lease_id })).await {
        Ok(_) => {
            let exist = exist(client, &sessions).await;
            assert!(!created || exist.iter().all(|exists| *exists), "a lease lost sessions: {exist:?}");
            soon(leases.revoke_lease(RevokeLeaseRequest { lease_id })).await.unwrap();
        }
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            assert!(revoking, "a lease that was granted is gone");
        }
    }
    soon(async { while exist(client, &sessions).await.contains(&true) {} }).await;
}

/// Follows the registry until the server is gone; `held` and the cursor are what it was told.
async fn observe(mut observed: Observed, held: Arc<Mutex<(BTreeSet<Key>, String)>>) {
    while let Ok(body) = observed.try_next().await {
        let mut held = held.lock();
        match body {
            Body::Events(body) => body.events.iter().for_each(|event| apply(&mut held.0, event)),
            Body::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
        held.1.clone_from(&observed.cursor);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_is_lost_when_the_server_is_killed() {
    let crashes: u32 = std::env::var("SESSIOND_TEST_CRASHES").map_or(100, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let storage = format!("file:{}", folder.path().join("registry").display());
    let told = Told::default();
    let gateway = Arc::new(Mutex::new(Gateway::default()));
    let next = Arc::new(AtomicI64::new(1_000_000));
    let held = Arc::new(Mutex::new((BTreeSet::new(), String::new())));
    for crash in 0..=crashes {
        let program = Program::start(&["--storage", &storage, "--retain-events", "20000"]).await;
        let client = program.sessions();
        let channel = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
        check_told(&client, &told).await;
        let left = std::mem::take(&mut *gateway.lock());
        check_gateway(&client, channel.clone(), left).await;

        let cursor = held.lock().1.clone();
        let mut observed = match &*cursor {
            "" => Observed::now(&client).await,
            cursor => Observed::after(&client, cursor).await,
        };
        // When it hears of this it has heard of all before.
        let marker = -1 - i64::from(crash);
        assert!(create(&client, 0, marker).await);
        let mut view = std::mem::take(&mut held.lock().0);
        while !view.contains(&(0, marker)) {
            observed.more_events().await.iter().for_each(|event| apply(&mut view, event));
        }
        assert_eq!(view, Observed::snapshot(&client).await.synced().await, "the observer's view, after crash {crash}");
        *held.lock() = (view, observed.cursor.clone());

        let mut running = JoinSet::new();
        let observing = tokio::spawn(observe(observed, Arc::clone(&held)));
        for writer in 0..WRITERS {
            running.spawn(write(client.clone(), Arc::clone(&told), writer));
        }
        running.spawn(come_and_go(channel, Arc::clone(&gateway), Arc::clone(&next)));
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..60_000))).await;
        program.crash().await;
        for status in soon(running.join_all()).await {
            assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{status:?}");
        }
        soon(observing).await.unwrap();
    }
}
