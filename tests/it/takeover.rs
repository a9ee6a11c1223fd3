//! Lookups of a session's lease, and takeovers between gateways, over the wire.

use std::time::Duration;

use sessiond::proto::{
    BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchLookupSessionsRequest, CreateSessionRequest,
    CreateSessionResponse, DestroySessionRequest, GrantLeaseRequest, Lease, LookupSessionRequest,
    LookupSessionResponse, Place,
};

use crate::{
    fake::{duration, soon},
    faulty,
    leases::{keep_alive, revoke},
    server::{Leases, Running, Sessions},
};

const LONG: Duration = Duration::from_secs(3600);

pub(crate) async fn grant(client: &Leases, owner: &str, ttl: Duration) -> Lease {
    let request = GrantLeaseRequest { ttl: Some(duration(ttl)), owner: owner.to_owned() };
    let lease_id = soon(client.clone().grant_lease(request)).await.unwrap().into_inner().lease_id;
    Lease { lease_id, owner: owner.to_owned() }
}

async fn lookup(client: &Sessions, id: i64) -> LookupSessionResponse {
    let request = LookupSessionRequest { session_id: Some(id), auth_key_id: 0 };
    soon(client.clone().lookup_session(request)).await.unwrap().into_inner()
}

async fn holder(client: &Sessions, id: i64) -> Option<Lease> {
    let found = lookup(client, id).await;
    assert!(found.exists);
    found.lease
}

async fn take(client: &Sessions, id: i64, lease: &Lease, only_from: Option<u64>) -> CreateSessionResponse {
    let request = CreateSessionRequest {
        session_id: Some(id),
        lease_id: lease.lease_id,
        only_from_lease_id: only_from,
        with_place: true,
        ..Default::default()
    };
    soon(client.clone().create_session(request)).await.unwrap().into_inner()
}

async fn take_all(client: &Sessions, ids: Vec<i64>, lease: &Lease) -> BatchCreateSessionsResponse {
    let request = BatchCreateSessionsRequest {
        session_ids: ids,
        lease_id: lease.lease_id,
        only_from_lease_id: Some(0),
        ..Default::default()
    };
    soon(client.clone().batch_create_sessions(request)).await.unwrap().into_inner()
}

#[tokio::test]
async fn lookups_return_the_lease_and_its_owner() {
    let server = Running::start().await;
    let (leases, client) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, "10.0.0.1:443", LONG).await, grant(&leases, "10.0.0.2:443", LONG).await);
    assert_eq!(lookup(&client, 1).await, LookupSessionResponse::default());
    let free = CreateSessionRequest { session_id: Some(1), ..Default::default() };
    assert!(soon(client.clone().create_session(free)).await.unwrap().into_inner().created);
    assert_eq!(holder(&client, 1).await, None);
    assert_eq!(take(&client, 1, &a, None).await.lease, None, "the request's own lease is not returned");
    assert_eq!(holder(&client, 1).await, Some(a.clone()));
    assert_eq!(take(&client, 2, &b, None).await.lease, None);
    let request = BatchLookupSessionsRequest { session_ids: vec![2, 3, 1], ..Default::default() };
    let found = soon(client.clone().batch_lookup_sessions(request)).await.unwrap().into_inner();
    assert_eq!((found.exists, found.lease_ids), (vec![true, false, true], vec![b.lease_id, 0, a.lease_id]));
    // A create without a lease returns the lease of an existing session.
    let free = CreateSessionRequest { session_id: Some(1), ..Default::default() };
    let answer = soon(client.clone().create_session(free)).await.unwrap().into_inner();
    assert_eq!((answer.created, answer.lease), (false, Some(a.clone())));
    revoke(&leases, a.lease_id).await.unwrap();
    assert_eq!(lookup(&client, 1).await, LookupSessionResponse::default());
}

#[tokio::test]
async fn a_returning_gateway_takes_back_only_sessions_under_no_live_lease() {
    let server = Running::start().await;
    let (leases, client) = (server.leases(), server.sessions());
    let a = grant(&leases, "a", Duration::from_secs(1)).await;
    let b = grant(&leases, "b", LONG).await;
    assert!(take_all(&client, (0..100).collect(), &a).await.created.iter().all(|created| *created));
    // A is cut off. Half of its clients connect to B, some before A's lease expires and some after.
    for id in 0..50 {
        if id == 25 {
            soon(async {
                while last_session_exists(&client).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        take(&client, id, &b, None).await;
    }
    assert!(keep_alive(&leases, a.lease_id).await.is_err());
    // A returns and registers all of its sessions again.
    let again = grant(&leases, "a", LONG).await;
    let answer = take_all(&client, (0..100).collect(), &again).await;
    let expected: Vec<u64> = (0..100).map(|id| if id < 50 { b.lease_id } else { again.lease_id }).collect();
    assert_eq!(answer.lease_ids, expected);
    assert_eq!(answer.created, (0..100).map(|id| id >= 50).collect::<Vec<_>>());
    assert_eq!(holder(&client, 0).await, Some(b));
    // A destroy under A's lease does not destroy a session of B.
    let request = DestroySessionRequest { session_id: Some(0), lease_id: again.lease_id, ..Default::default() };
    assert!(!soon(client.clone().destroy_session(request)).await.unwrap().into_inner().destroyed);
    let answer = take_all(&client, (0..100).collect(), &again).await;
    assert_eq!(answer.lease_ids, expected, "a retry changes nothing");
}

/// Whether the last session of the gateway that was cut off still exists.
async fn last_session_exists(client: &Sessions) -> bool {
    lookup(client, 99).await.exists
}

#[tokio::test]
async fn a_delayed_create_does_not_take_a_session_back() {
    let server = Running::start().await;
    let (leases, client) = (server.leases(), server.sessions());
    let [old, a, b] =
        [grant(&leases, "old", LONG).await, grant(&leases, "a", LONG).await, grant(&leases, "b", LONG).await];
    take(&client, 1, &old, None).await;
    let seen_by_a = holder(&client, 1).await.unwrap().lease_id;
    let seen_by_b = holder(&client, 1).await.unwrap().lease_id;
    let answer = take(&client, 1, &b, Some(seen_by_b)).await;
    assert_eq!((answer.created, answer.lease), (false, None));
    let late = take(&client, 1, &a, Some(seen_by_a)).await;
    assert_eq!((late.created, late.lease), (false, Some(b.clone())));
    assert_eq!(holder(&client, 1).await, Some(b));
}

/// The answer must not simply leave out a lease that has ended meanwhile: that would say that the caller has the
/// session.
#[tokio::test]
async fn a_takeover_succeeds_if_the_current_lease_ends_meanwhile() {
    let (storage, server) = faulty::served().await;
    let (leases, client) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, "a", LONG).await, grant(&leases, "b", LONG).await);
    for id in 0..10 {
        take(&client, id, &a, None).await;
    }
    storage.set_state(faulty::ENDS_LEASES);
    let answer = take(&client, 3, &b, Some(0)).await;
    storage.set_state(faulty::HEALTHY);
    assert_eq!(answer.lease, None);
    assert_eq!(holder(&client, 3).await, Some(b), "the answer said that the session is under the request's lease");
}

#[tokio::test]
async fn answers_carry_the_place_at_which_they_are_true() {
    let server = Running::start().await;
    let (leases, client) = (server.leases(), server.sessions());
    let (a, b) = (grant(&leases, "a", LONG).await, grant(&leases, "b", LONG).await);
    let place = |position| Some(Place { partition: 0, position });
    assert_eq!(take(&client, 1, &a, None).await.place, place(1));
    assert_eq!(take(&client, 2, &a, None).await.place, place(2));
    assert_eq!(take(&client, 1, &a, None).await.place, place(2), "nothing changed: the place is the end of the log");
    assert_eq!(take(&client, 1, &b, Some(0)).await.place, place(2));
    assert_eq!(take(&client, 1, &b, Some(a.lease_id)).await.place, place(3));
    let request = DestroySessionRequest { session_id: Some(1), with_place: true, ..Default::default() };
    let answer = soon(client.clone().destroy_session(request)).await.unwrap().into_inner();
    assert_eq!((answer.destroyed, answer.place), (true, place(4)));
    let request = BatchCreateSessionsRequest { session_ids: vec![3, 4], with_place: true, ..Default::default() };
    let answer = soon(client.clone().batch_create_sessions(request)).await.unwrap().into_inner();
    assert_eq!(answer.places, Vec::from_iter(place(6)));
    assert!(answer.lease_ids.is_empty(), "lease ids are returned only if only_from_lease_id is set");
    let plain = CreateSessionRequest { session_id: Some(5), ..Default::default() };
    assert_eq!(soon(client.clone().create_session(plain)).await.unwrap().into_inner().place, None);
}
