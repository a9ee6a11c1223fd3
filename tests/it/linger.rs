//! Leases that are revoked with a linger, over the wire: a gateway shuts down, and its clients move to other gateways.

use std::{collections::BTreeSet, time::Duration};

use sessiond::{
    proto::{
        BatchCreateSessionsRequest, DestroyReason, RevokeLeaseRequest, SessionEventType, SubscribeRequest,
        subscribe_response::Body,
    },
    session::SessionKey,
    storage::{SessionStorage, StorageError, StorageOptions, file::FileStorage},
};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::{
    fake::{duration, soon},
    leases::{keep_alive, revoke},
    observed::Observed,
    placements::{Mirror, destroy, put, under},
    server::{Leases, Running},
    takeover::grant,
};

const LONG: Duration = Duration::from_secs(3600);

async fn linger(client: &Leases, lease_id: u64, linger: Duration) -> Result<u64, Status> {
    let request = RevokeLeaseRequest { lease_id, linger: Some(duration(linger)) };
    soon(client.clone().revoke_lease(request)).await.map(|revoked| revoked.into_inner().sessions_destroyed)
}

#[tokio::test]
async fn sessions_that_move_during_a_linger_are_not_destroyed() {
    const MOVES: i64 = 10_000;
    const ALL: i64 = MOVES + 100;
    const LINGER: Duration = Duration::from_secs(3);
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, "a", LONG).await.lease_id, grant(&leases, "b", LONG).await.lease_id);
    put(&writer, 0..ALL, a).await;
    let mut mirror = Mirror::synced(&server.sessions(), &[]).await;
    let mut own = Mirror::synced(&server.sessions(), &[a]).await;
    let mut plain = Observed::now(&server.sessions()).await;
    let began = Instant::now();
    assert_eq!(linger(&leases, a, LINGER).await.unwrap(), 0);
    for some in (0..MOVES).collect::<Vec<_>>().chunks(500) {
        let request = BatchCreateSessionsRequest {
            session_ids: some.to_vec(),
            lease_id: b,
            // No lookup is needed: a lease that lingers protects nothing.
            only_from_lease_id: Some(0),
            ..Default::default()
        };
        let answer = soon(writer.clone().batch_create_sessions(request)).await.unwrap().into_inner();
        assert!(answer.lease_ids.iter().all(|lease| *lease == b) && !answer.created.contains(&true));
    }
    assert!(began.elapsed() < LINGER, "the machine took {:?} for the moves", began.elapsed());
    let events = mirror.reaches(ALL as usize).await;
    assert!(began.elapsed() >= LINGER, "sessions ended before the linger had passed");
    let of = |r#type| events.iter().filter(move |event| event.r#type() == r#type);
    assert_eq!(of(SessionEventType::Moved).count(), MOVES as usize);
    let ended: Vec<_> = of(SessionEventType::Destroyed).map(|event| event.session_id).collect();
    assert_eq!((ended.len(), ended.iter().copied().collect::<BTreeSet<_>>()), (100, (MOVES..ALL).collect()));
    assert!(of(SessionEventType::Destroyed).all(|event| event.reason() == DestroyReason::LeaseRevoked));
    assert_eq!(mirror.held, under(b, 0..MOVES));
    own.reaches(ALL as usize).await;
    assert!(own.held.is_empty());
    let received: BTreeSet<_> = plain.events(100).await.iter().map(|event| event.session_id).collect();
    assert_eq!(received, (MOVES..ALL).collect(), "an observer without placements sees the rest end, and nothing else");
    assert_eq!(keep_alive(&leases, a).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_lingering_lease_refuses_creates_and_keep_alives_but_allows_destroys() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let a = grant(&leases, "a", LONG).await.lease_id;
    put(&writer, 0..10, a).await;
    // Now the server could answer the next keep-alive from memory.
    keep_alive(&leases, a).await.unwrap();
    assert_eq!(linger(&leases, a, LONG).await.unwrap(), 0);
    let status = keep_alive(&leases, a).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let request = BatchCreateSessionsRequest { session_ids: vec![3, 77], lease_id: a, ..Default::default() };
    let status = soon(writer.clone().batch_create_sessions(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(destroy(&writer, 3, a).await, "its gateway may still destroy its sessions");
    // A second revoke with a longer linger changes nothing. A revoke without a linger ends the lease.
    assert_eq!(linger(&leases, a, LONG).await.unwrap(), 0);
    assert_eq!(revoke(&leases, a).await.unwrap(), 9);
    assert_eq!(linger(&leases, a, LONG).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.subject.session_count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_by_lease_reports_how_each_session_left() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, "a", LONG).await.lease_id, grant(&leases, "b", LONG).await.lease_id);
    put(&writer, 0..4, a).await;
    let request = SubscribeRequest { lease_ids: vec![a], ..Default::default() };
    let mut own = Observed::start(&server.sessions(), request).await;
    put(&writer, 0..1, b).await;
    assert!(destroy(&writer, 1, a).await && destroy(&writer, 2, 0).await);
    revoke(&leases, a).await.unwrap();
    let received: Vec<_> = own.events(4).await.iter().map(|event| (event.session_id, event.reason())).collect();
    let (moved, released) = ((0, DestroyReason::Unspecified), (1, DestroyReason::Released));
    assert_eq!(received, [moved, released, (2, DestroyReason::Requested), (3, DestroyReason::LeaseRevoked)]);
    // A lease that has ended is not an error. It matches nothing.
    let request = SubscribeRequest {
        start: Some(sessiond::proto::subscribe_request::Start::Snapshot(true)),
        lease_ids: vec![a, 0, u64::MAX],
        ..Default::default()
    };
    let mut ended_lease = Observed::start(&server.sessions(), request).await;
    let Body::Synced(synced) = ended_lease.next().await else { panic!("the snapshot is empty") };
    assert_eq!(synced.session_count, 0);
}

const OPTIONS: StorageOptions = StorageOptions::DEFAULT.retain_events(1000).max_sessions(1 << 20).max_leases(1 << 10);

/// A restart extends other leases by at least the outage grace of 150 s, but not lingering ones.
#[tokio::test]
async fn a_linger_continues_while_a_registry_in_a_file_is_down() {
    for (linger, away) in [(2000, 500), (1000, 1500)].map(|(linger, away)| (millis(linger), millis(away))) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
        let (a, b) = (storage.grant_lease(LONG, "a").await.unwrap(), storage.grant_lease(LONG, "b").await.unwrap());
        let sessions: Vec<_> = (0..20).map(|id| SessionKey::new(0, id)).collect();
        storage.create(&sessions, Some(a)).await.unwrap();
        let began = Instant::now();
        assert_eq!(storage.revoke_lease_with(a, linger).await.unwrap(), 0);
        storage.create(&sessions[..5], Some(b)).await.unwrap();
        drop(storage);
        sleep(away).await;

        let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
        if began.elapsed() < linger {
            let refused = storage.create(&sessions, Some(a)).await.unwrap_err();
            assert!(matches!(refused, StorageError::LeaseLingers(lease) if lease == a), "{refused}");
        }
        let ended = async {
            while storage.has(&sessions[5..]).await.unwrap().contains(&true) {
                sleep(millis(10)).await;
            }
        };
        tokio::select! {
            Err(error) = storage.expire_leases() => panic!("{error}"),
            () = soon(ended) => {}
        }
        let took = began.elapsed();
        assert!(took >= linger && took < linger.max(away) + Duration::from_secs(5), "{linger:?} took {took:?}");
        assert_eq!(storage.has(&sessions[..5]).await.unwrap(), [true; 5], "sessions that had moved still exist");
        storage.keep_lease_alive(b).await.unwrap();
        storage.keep_lease_alive(a).await.unwrap_err();
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
