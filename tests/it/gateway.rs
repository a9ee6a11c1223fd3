//! Tests the example gateway of the client's documentation against the real server.

// The gateway prints the errors that it recovers from.
#![allow(clippy::print_stderr)]

use std::sync::Arc;

use sessiond::session::LeaseId;

use crate::{
    fake::soon,
    lease_guard::{Network, Registry},
};

include!("../../src/client/lease/gateway_example.rs");

async fn holder(client: &Client, session: SessionKey) -> Option<LeaseId> {
    soon(client.lookup(session)).await.unwrap().lease.map(|lease| lease.id)
}

#[tokio::test]
async fn a_gateway_that_was_cut_off_does_not_take_back_sessions_that_moved() {
    let ttl = Duration::from_secs(2);
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let other = registry.client();
    let b = other.grant_lease(Duration::from_secs(60), "b").await.unwrap().id;
    let gateway = Arc::new(Gateway::start(network.client(), "a", ttl).await.unwrap());
    let a = gateway.lease.id();
    let holding_on = tokio::spawn({
        let (gateway, events) = (Arc::clone(&gateway), gateway.lease.events());
        async move { gateway.keep_registered(events).await }
    });
    let [stays, moves_early, moves_late] = [1, 2, 3].map(|id| SessionKey::new(0, id));
    for session in [stays, moves_early, moves_late] {
        assert!(gateway.opened(session).await.unwrap());
    }

    network.cut();
    assert!(!other.create_under(moves_early, b).await.unwrap(), "the session exists, and moves");
    soon(async {
        while other.has(moves_late).await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(other.create_under(moves_late, b).await.unwrap(), "its lease has expired, so the session is new");
    network.mend();

    // The gateway registers all sessions again in one batch: once one of them is back, the others have been decided.
    soon(async {
        while holder(&other, stays).await.is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let again = gateway.lease.id();
    assert_ne!(again, a);
    assert_eq!(holder(&other, stays).await, Some(again));
    for moved in [moves_early, moves_late] {
        assert_eq!(holder(&other, moved).await, Some(b));
    }
    let held_after = async {
        let order = gateway.order.read().await;
        let held = gateway.held.lock().unwrap().clone();
        drop(order);
        held
    };
    assert_eq!(soon(held_after).await, HashSet::from([stays]), "the gateway knows which sessions have moved");
    assert!(!gateway.closed(moves_late).await.unwrap());
    assert_eq!(holder(&other, moves_late).await, Some(b), "closing the old connection ends no session");
    holding_on.abort();
}
