//! The client's gateway against the real server.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use sessiond::{
    client::{Client, ClientError, CloseReason, Connection, Gateway, GatewayOptions, WatchOptions, WatchUpdate},
    session::{DestroyReason, LeaseId, SessionKey},
};
use tokio::{
    task::unconstrained,
    time::{sleep, timeout},
};

use crate::{
    delayed::served,
    fake::soon,
    lease_guard::{Network, Registry},
    server::Running,
};

const LONG: Duration = Duration::from_secs(60);

fn key(id: i64) -> SessionKey {
    SessionKey::new(7, id)
}

async fn holder(client: &Client, session: SessionKey) -> Option<LeaseId> {
    soon(client.lookup(session)).await.unwrap().lease.map(|lease| lease.id)
}

/// Waits until the session is under this lease, or does not exist.
async fn held_by(client: &Client, session: SessionKey, lease: Option<LeaseId>) {
    soon(async {
        while holder(client, session).await != lease || client.has(session).await.unwrap() != lease.is_some() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn gateway(client: &Client, owner: &str) -> Gateway {
    soon(client.gateway(GatewayOptions::new(owner).ttl(LONG))).await.unwrap()
}

async fn connect(gateway: &Gateway, session: SessionKey) -> Connection {
    soon(gateway.connect(session)).await.unwrap()
}

async fn is_open(connection: &Connection) -> bool {
    timeout(Duration::from_millis(20), connection.closed()).await.is_err()
}

/// Returns the sessions in the registry.
async fn sessions(client: &Client) -> BTreeSet<SessionKey> {
    let mut watch = client.watch(WatchOptions::snapshot());
    let mut held = BTreeSet::new();
    loop {
        match soon(watch.next()).await.unwrap() {
            WatchUpdate::Snapshot(sessions) => held.extend(sessions.into_iter().map(|found| found.session)),
            WatchUpdate::Synced { .. } => return held,
            WatchUpdate::Subscribed { .. } => {}
            // The registry is changing.
            _ => held.clear(),
        }
    }
}

async fn has_exactly(client: &Client, expected: &BTreeSet<SessionKey>) {
    let reached = async {
        while sessions(client).await != *expected {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LONG, reached).await.expect("the registry holds exactly these sessions within a minute");
}

#[test]
fn gateways_and_connections_can_be_shared() {
    fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<Gateway>();
    is_shared::<Connection>();
}

#[tokio::test]
async fn a_session_lasts_as_long_as_its_last_connection() {
    let registry = Registry::start().await;
    let client = registry.client();
    let gateway = gateway(&client, "a").await;
    let (first, second) = (connect(&gateway, key(1)).await, connect(&gateway, key(1)).await);
    assert_eq!((first.session(), holder(&client, key(1)).await), (key(1), Some(gateway.lease_id())));
    drop(first);
    // Calls for two sessions keep their order, so the first close has had its effect once this one has.
    drop(connect(&gateway, key(2)).await);
    held_by(&client, key(2), None).await;
    assert_eq!(holder(&client, key(1)).await, Some(gateway.lease_id()));
    assert!(is_open(&second).await);
    drop(second);
    held_by(&client, key(1), None).await;
}

#[tokio::test]
async fn a_gateway_that_was_cut_off_does_not_take_back_sessions_that_moved() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let other = registry.client();
    let b = other.grant_lease(LONG, "b").await.unwrap().id;
    let options = GatewayOptions::new("a").ttl(Duration::from_secs(2));
    let gateway = soon(network.client().gateway(options)).await.unwrap();
    let a = gateway.lease_id();
    let [stays, early, late] = [1, 2, 3].map(key);
    let [staying, moved_early, moved_late] = [stays, early, late].map(|session| connect(&gateway, session));
    let (staying, moved_early, moved_late) = tokio::join!(staying, moved_early, moved_late);

    network.cut();
    assert!(!other.create_under(early, b).await.unwrap(), "the session exists, and moves");
    held_by(&other, late, None).await;
    assert!(other.create_under(late, b).await.unwrap(), "its lease has expired, so the session is new");
    network.mend();

    assert_eq!(soon(moved_early.closed()).await, CloseReason::Moved { to: b });
    assert_eq!(soon(moved_late.closed()).await, CloseReason::Moved { to: b });
    soon(async {
        while gateway.lease_id() == a {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    held_by(&other, stays, Some(gateway.lease_id())).await;
    assert!(is_open(&staying).await);
    drop((moved_early, moved_late));
    drop(staying);
    held_by(&other, stays, None).await;
    for moved in [early, late] {
        assert_eq!(holder(&other, moved).await, Some(b), "closing the old connection ends no session");
    }
}

#[tokio::test]
async fn a_delayed_create_takes_nothing_from_a_newer_gateway() {
    let (delays, server) = served().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let (a, b) = (gateway(&client, "a").await, gateway(&client, "b").await);
    let earlier = gateway(&client, "earlier").await;
    let before = connect(&earlier, key(1)).await;
    let mut delayed = delays.delay_next_create();
    let connecting = tokio::spawn({
        let a = a.clone();
        async move { a.connect(key(1)).await }
    });
    delayed.waits().await;
    let newest = connect(&b, key(1)).await;
    assert_eq!(soon(before.closed()).await, CloseReason::Moved { to: b.lease_id() });
    drop(delayed);
    let error = soon(connecting).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::SessionElsewhere { lease } if lease == b.lease_id()), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(holder(&client, key(1)).await, Some(b.lease_id()));
    assert!(is_open(&newest).await);
}

#[tokio::test]
async fn a_create_that_is_delayed_past_the_close_leaves_no_ghost() {
    let (delays, server) = served().await;
    let client = Client::builder(&server.url()).unwrap().timeout(Duration::from_secs(6)).connect_lazy().unwrap();
    let gateway = gateway(&client, "a").await;
    let mut delayed = delays.delay_next_create();
    let mut connecting = Box::pin(gateway.connect(key(1)));
    tokio::select! {
        answer = &mut connecting => panic!("{answer:?}"),
        () = delayed.waits() => drop(connecting),
    }
    // The gateway gives up the create and destroys the session before it serves the next one.
    drop(connect(&gateway, key(2)).await);
    held_by(&client, key(2), None).await;
    let mut watch = client.watch(WatchOptions::default().session_ids([key(1).session_id]));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    drop(delayed);
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Events(_)), "the create was executed");
    held_by(&client, key(1), None).await;
}

#[tokio::test]
async fn a_destroy_that_is_delayed_past_a_reconnect_ends_no_session_for_long() {
    let (delays, server) = served().await;
    let client = Client::builder(&server.url()).unwrap().timeout(Duration::from_secs(6)).connect_lazy().unwrap();
    let gateway = gateway(&client, "a").await;
    let mut delayed = delays.delay_next_destroy();
    drop(connect(&gateway, key(1)).await);
    delayed.waits().await;
    let again = connect(&gateway, key(1)).await;
    let mut watch = client.watch(WatchOptions::default().session_ids([key(1).session_id]));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    drop(delayed);
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Events(_)), "the destroy was executed");
    held_by(&client, key(1), Some(gateway.lease_id())).await;
    assert!(is_open(&again).await);
}

#[tokio::test]
async fn a_session_that_is_destroyed_by_a_back_end_closes_its_connections() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let gateway = gateway(&client, "a").await;
    let mut fastest = Duration::MAX;
    for attempt in 0..5 {
        let (first, second) = (connect(&gateway, key(attempt)).await, connect(&gateway, key(attempt)).await);
        // The gateway's stream is open once a session that the gateway does not know has been destroyed.
        client.create_under(key(100 + attempt), gateway.lease_id()).await.unwrap();
        held_by(&client, key(100 + attempt), None).await;
        let began = Instant::now();
        assert!(client.destroy(key(attempt)).await.unwrap());
        let reason = CloseReason::Destroyed { reason: Some(DestroyReason::Requested) };
        assert_eq!(soon(first.closed()).await, reason);
        fastest = fastest.min(began.elapsed());
        assert_eq!(soon(second.closed()).await, reason);
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[tokio::test]
async fn a_client_that_comes_back_closes_its_old_connection() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (gateway(&client, "a").await, gateway(&client, "b").await);
    let old = connect(&a, key(1)).await;
    let between = connect(&b, key(1)).await;
    let new = connect(&a, key(1)).await;
    assert_eq!(soon(old.closed()).await, CloseReason::Moved { to: b.lease_id() });
    assert_eq!(soon(between.closed()).await, CloseReason::Moved { to: a.lease_id() });
    drop((old, between));
    drop(connect(&b, key(2)).await);
    held_by(&client, key(2), None).await;
    assert_eq!(holder(&client, key(1)).await, Some(a.lease_id()));
    assert!(is_open(&new).await);
}

#[tokio::test]
async fn connections_that_close_while_all_are_registered_again_leave_no_ghosts() {
    const ALL: i64 = 60_000;
    let server = Running::start().await;
    let client = Client::builder(&server.url()).unwrap().timeout(LONG).connect_lazy().unwrap();
    let gateway = gateway(&client, "a").await;
    // Without limits on a task's share of the thread, which would make this quadratic.
    let connecting = unconstrained(try_join_all((0..ALL).map(|id| gateway.connect(key(id)))));
    let mut connections = timeout(LONG, connecting).await.unwrap().unwrap();
    let first = gateway.lease_id();
    assert_eq!(server.subject.session_count().await.unwrap(), ALL as u64);
    client.revoke_lease(first).await.unwrap();
    soon(async {
        while client.has(key(ALL - 1)).await.unwrap() || server.subject.session_count().await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Some are registered again, and some are not.
    while connections.len() > ALL as usize / 2 {
        for _ in 0..1000 {
            drop(connections.swap_remove(fastrand::usize(..connections.len())));
        }
        tokio::task::yield_now().await;
    }
    let left: BTreeSet<_> = connections.iter().map(Connection::session).collect();
    has_exactly(&client, &left).await;
    assert_ne!(gateway.lease_id(), first);
    let placed = client.batch_lookup(&left.iter().copied().collect::<Vec<_>>()).await.unwrap();
    assert!(placed.iter().all(|placed| placed.lease == Some(gateway.lease_id())));
    assert!(is_open(&connections[0]).await, "the end of the lease closes no connection");
    assert!(!unconstrained(join_all(connections.iter().map(is_open))).await.contains(&false));
    drop(connections);
    has_exactly(&client, &BTreeSet::new()).await;
}

#[tokio::test]
async fn everything_is_registered_again_in_a_registry_that_lost_its_memory() {
    let registry = Registry::start().await;
    let client = registry.client();
    let gateway = gateway(&client, "a").await;
    let connections = soon(try_join_all((0..1000).map(|id| gateway.connect(key(id))))).await.unwrap();
    let registry = Registry::listen(registry.stop().await).await;
    let all: BTreeSet<_> = connections.iter().map(Connection::session).collect();
    has_exactly(&registry.client(), &all).await;
    assert!(!join_all(connections.iter().map(is_open)).await.contains(&false));
    let late = connect(&gateway, key(5000)).await;
    drop(connections);
    has_exactly(&registry.client(), &BTreeSet::from([late.session()])).await;
}

#[tokio::test]
async fn clients_move_after_a_stop_without_being_seen_to_disappear() {
    let registry = Registry::start().await;
    let client = registry.client();
    let a = client.gateway(GatewayOptions::new("a").linger(Duration::from_secs(2))).await.unwrap();
    let b = gateway(&client, "b").await;
    let leaving = soon(try_join_all((0..100).map(|id| a.connect(key(id))))).await.unwrap();
    drop(connect(&a, key(500)).await);
    let mut watch = client.watch(WatchOptions::default());
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    soon(a.stop()).await.unwrap();
    assert!(!client.has(key(500)).await.unwrap(), "a session that was closed before is destroyed");
    for connection in &leaving {
        assert_eq!(soon(connection.closed()).await, CloseReason::Stopped);
    }
    assert!(matches!(a.connect(key(1)).await.unwrap_err(), ClientError::GatewayStopped));
    drop(leaving);
    let moved = soon(try_join_all((1..100).map(|id| b.connect(key(id))))).await.unwrap();
    let ended = loop {
        match soon(watch.next()).await.unwrap() {
            WatchUpdate::Events(events) if events[0].session == key(500) => assert_eq!(events.len(), 1),
            WatchUpdate::Events(events) => break events,
            _ => {}
        }
    };
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0].session, key(0), "only the session whose client did not move ends");
    assert_eq!(holder(&client, key(1)).await, Some(b.lease_id()));
    drop(moved);
    soon(a.stop()).await.unwrap();
}

#[tokio::test]
async fn dropping_a_gateway_stops_it() {
    let registry = Registry::start().await;
    let client = registry.client();
    let options = GatewayOptions::new("a").linger(Duration::ZERO);
    let gateway = client.gateway(options).await.unwrap();
    let connection = connect(&gateway, key(1)).await;
    drop(gateway);
    assert_eq!(soon(connection.closed()).await, CloseReason::Stopped);
    held_by(&client, key(1), None).await;
}

#[tokio::test]
async fn connecting_waits_for_the_registry_but_not_longer_than_the_timeout() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let client = network.client();
    let gateway = gateway(&client, "a").await;
    network.cut();
    let connecting = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.connect(key(1)).await }
    });
    sleep(Duration::from_millis(300)).await;
    network.mend();
    let connection = soon(connecting).await.unwrap().unwrap();
    network.cut();
    let error = soon(gateway.connect(key(2))).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(is_open(&connection).await, "an outage closes no connection");
}
