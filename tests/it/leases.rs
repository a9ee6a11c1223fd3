//! LeaseService over the wire, and the effect of leases on sessions.

use std::time::{Duration, Instant};

use sessiond::proto::{
    BatchCreateSessionsRequest, BatchDestroySessionsRequest, CreateSessionRequest, DestroyReason,
    DestroySessionRequest, GrantLeaseRequest, KeepLeaseAliveRequest, RevokeLeaseRequest, SessionEventType,
};
use tonic::{Code, Status};

use crate::{
    fake::{duration, soon},
    observed::{Observed, created_ids},
    server::{Leases, Running, Sessions},
    sessions::{create, destroy, has},
};

pub(crate) async fn grant(client: &Leases, ttl: Duration) -> u64 {
    let request = GrantLeaseRequest { ttl: Some(duration(ttl)), owner: "gateway-1".to_owned() };
    let granted = soon(client.clone().grant_lease(request)).await.unwrap().into_inner();
    assert_eq!(granted.ttl, Some(duration(ttl)));
    assert_ne!(granted.lease_id, 0);
    granted.lease_id
}

pub(crate) async fn keep_alive(client: &Leases, lease_id: u64) -> Result<Option<prost_types::Duration>, Status> {
    soon(client.clone().keep_lease_alive(KeepLeaseAliveRequest { lease_id })).await.map(|kept| kept.into_inner().ttl)
}

pub(crate) async fn revoke(client: &Leases, lease_id: u64) -> Result<u64, Status> {
    let revoked = soon(client.clone().revoke_lease(RevokeLeaseRequest { lease_id, linger: None })).await;
    revoked.map(|revoked| revoked.into_inner().sessions_destroyed)
}

pub(crate) async fn create_under(client: &Sessions, lease_id: u64, id: i64) -> bool {
    let request = CreateSessionRequest { session_id: Some(id), auth_key_id: 0, lease_id, ..Default::default() };
    soon(client.clone().create_session(request)).await.unwrap().into_inner().created
}

async fn destroy_under(client: &Sessions, lease_id: u64, id: i64) -> bool {
    let request = DestroySessionRequest { session_id: Some(id), auth_key_id: 0, lease_id, ..Default::default() };
    soon(client.clone().destroy_session(request)).await.unwrap().into_inner().destroyed
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn revoking_a_lease_destroys_its_sessions() {
    let server = Running::start().await;
    let (leases, writer, reader) = (server.leases(), server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    let lease = grant(&leases, LONG).await;
    assert_ne!(lease, grant(&leases, LONG).await);
    assert_eq!(keep_alive(&leases, lease).await.unwrap(), Some(duration(LONG)));
    assert!(create(&writer, 0, -1).await);
    let request = BatchCreateSessionsRequest {
        session_ids: (0..1000).collect(),
        auth_key_ids: vec![],
        lease_id: lease,
        ..Default::default()
    };
    let created = soon(writer.clone().batch_create_sessions(request)).await.unwrap().into_inner().created;
    assert!(created.iter().all(|created| *created));
    assert_eq!(created_ids(&observed.events(1001).await).len(), 1001);
    assert_eq!(revoke(&leases, lease).await.unwrap(), 1000);
    for event in observed.events(1000).await {
        assert_eq!((event.r#type(), event.reason()), (SessionEventType::Destroyed, DestroyReason::LeaseRevoked));
        assert!((0..1000).contains(&event.session_id));
    }
    assert!(!has(&reader, 0, 5).await && has(&reader, 0, -1).await);
    assert_eq!(keep_alive(&leases, lease).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(revoke(&leases, lease).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.subject.lease_count().await.unwrap(), 1);
}

/// Lets a lease expire. Returns when the end of its session was observed, measured from the request for the lease and
/// from its answer.
async fn expire(ttl: Duration) -> (Duration, Duration) {
    let server = Running::start().await;
    let (leases, writer, reader) = (server.leases(), server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    let asked = Instant::now();
    let lease = grant(&leases, ttl).await;
    let granted = Instant::now();
    assert!(create_under(&writer, lease, 1).await && create(&writer, 0, 2).await);
    assert_eq!(created_ids(&observed.events(2).await), [1, 2]);
    let event = observed.events(1).await[0];
    let observed_after = (asked.elapsed(), granted.elapsed());
    assert_eq!((event.session_id, event.reason()), (1, DestroyReason::LeaseExpired));
    assert!(!has(&writer, 0, 1).await && has(&writer, 0, 2).await);
    assert_eq!(revoke(&leases, lease).await.unwrap_err().code(), Code::NotFound);
    observed_after
}

#[tokio::test]
async fn a_lease_expires_within_a_second_after_its_ttl_and_never_before() {
    let ttl = Duration::from_secs(1);
    // On a busy machine a lease may expire late, but not every time. It must never expire early.
    for _ in 0..5 {
        let (since_asked, since_granted) = expire(ttl).await;
        assert!(since_asked >= ttl, "{since_asked:?}");
        if since_granted <= ttl + Duration::from_secs(1) {
            return;
        }
    }
    panic!("in five attempts, no lease expired within a second after its ttl");
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_does_not_expire() {
    let server = Running::start().await;
    let (leases, writer, reader) = (server.leases(), server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    let ttl = Duration::from_secs(2);
    let lease = grant(&leases, ttl).await;
    create_under(&writer, lease, 1).await;
    let began = Instant::now();
    let mut kept = Instant::now();
    while began.elapsed() < ttl + ttl / 2 {
        // A call that repeats within a tenth of the ttl would be answered from memory, and extend nothing.
        tokio::time::sleep(ttl / 8).await;
        kept = Instant::now();
        assert_eq!(keep_alive(&leases, lease).await.unwrap(), Some(duration(ttl)));
    }
    assert!(has(&reader, 0, 1).await);
    assert_eq!(created_ids(&observed.events(1).await), [1]);
    let event = observed.events(1).await[0];
    assert!(kept.elapsed() >= ttl, "the lease gets its full ttl from the last keep-alive on");
    assert_eq!((event.session_id, event.reason()), (1, DestroyReason::LeaseExpired));
}

#[tokio::test]
async fn destroys_under_a_lease_only_destroy_sessions_under_that_lease() {
    let server = Running::start().await;
    let (leases, old_gateway, new_gateway) = (server.leases(), server.sessions(), server.sessions());
    let mut observed = Observed::now(&new_gateway).await;
    let (old, new) = (grant(&leases, LONG).await, grant(&leases, LONG).await);
    assert!(create_under(&old_gateway, old, 1).await);
    assert!(!create_under(&new_gateway, new, 1).await, "the session exists, and moves");
    assert!(!destroy_under(&old_gateway, old, 1).await, "late clean-up by the old gateway does nothing");
    assert_eq!(revoke(&leases, old).await.unwrap(), 0);
    assert!(has(&new_gateway, 0, 1).await);
    assert!(!create(&new_gateway, 0, 1).await, "a create without a lease leaves the session under its lease");
    assert!(!destroy_under(&old_gateway, old, 1).await, "a gone lease has no sessions");
    assert!(destroy_under(&new_gateway, new, 1).await);

    assert!(create_under(&new_gateway, new, 2).await && create(&new_gateway, 0, 3).await);
    assert!(!destroy_under(&new_gateway, new, 3).await, "session 3 is under no lease");
    let request = BatchDestroySessionsRequest {
        session_ids: vec![3, 2, 2],
        auth_key_ids: vec![],
        lease_id: new,
        ..Default::default()
    };
    let destroyed = soon(new_gateway.clone().batch_destroy_sessions(request)).await.unwrap().into_inner().destroyed;
    assert_eq!(destroyed, [false, true, false]);
    assert!(create_under(&new_gateway, new, 4).await);
    assert!(destroy(&new_gateway, 0, 4).await, "a destroy without a lease works whatever lease the session is under");
    assert!(!create_under(&new_gateway, new, 3).await, "a session without a lease moves to the lease");
    assert_eq!(revoke(&leases, new).await.unwrap(), 1);

    let events: Vec<(i64, i32)> =
        observed.events(8).await.iter().map(|event| (event.session_id, event.reason)).collect();
    let (created, requested, revoked) = (0, DestroyReason::Requested.into(), DestroyReason::LeaseRevoked.into());
    let first = [(1, created), (1, requested), (2, created), (3, created), (2, requested)];
    assert_eq!(events[..5], first);
    assert_eq!(events[5..], [(4, created), (4, requested), (3, revoked)]);
}

#[tokio::test]
async fn the_shortest_and_longest_ttl_and_owner_are_accepted() {
    let server = Running::start().await;
    let leases = server.leases();
    for ttl in [Duration::from_secs(1), Duration::from_secs(24 * 3600), Duration::new(1, 1)] {
        let lease = grant(&leases, ttl).await;
        assert_eq!(revoke(&leases, lease).await.unwrap(), 0);
    }
    for owner in [String::new(), "é".repeat(64)] {
        let request = GrantLeaseRequest { ttl: Some(duration(LONG)), owner };
        soon(leases.clone().grant_lease(request)).await.unwrap();
    }
}
