//! Watches with placements: the Rust client against the real server.

use std::time::Duration;

use sessiond::{
    client::{Client, EventType, Place, SnapshotSession, Watch, WatchOptions, WatchUpdate},
    session::{DestroyReason, LeaseId, SessionEvent, SessionKey},
};

use crate::{
    fake::soon,
    lease_guard::{Network, Registry},
};

fn key(id: i64) -> SessionKey {
    SessionKey::new(0, id)
}

/// Returns the place at this position. The memory storage has one partition.
fn place(position: u64) -> [Place; 1] {
    [Place { partition: 0, position }]
}

async fn grant(client: &Client) -> LeaseId {
    soon(client.grant_lease(Duration::from_secs(60), "gateway")).await.unwrap().id
}

/// Moves an existing session to a lease.
async fn move_to(client: &Client, id: i64, lease: LeaseId) {
    assert!(!soon(client.create_under(key(id), lease)).await.unwrap());
}

/// Returns the next update other than heartbeats.
async fn next(watch: &mut Watch) -> WatchUpdate {
    loop {
        match soon(watch.next()).await.expect("the watch continues") {
            WatchUpdate::Heartbeat => {}
            update => return update,
        }
    }
}

/// Reads a snapshot to its end. Returns its sessions with their leases.
async fn synced(watch: &mut Watch) -> Vec<(i64, Option<LeaseId>)> {
    let mut held = Vec::new();
    loop {
        match next(watch).await {
            WatchUpdate::Subscribed { .. } => {}
            WatchUpdate::Snapshot(part) => {
                assert_eq!(watch.places(), []);
                held.extend(part.iter().map(|SnapshotSession { session, lease }| (session.session_id.0, *lease)));
            }
            WatchUpdate::Synced { session_count } => {
                assert_eq!(session_count, held.len() as u64);
                held.sort_unstable();
                return held;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Asserts that these events come next, in any number of messages.
async fn assert_events(watch: &mut Watch, expected: &[SessionEvent]) {
    let mut received = Vec::new();
    while received.len() < expected.len() {
        match next(watch).await {
            WatchUpdate::Events(events) => received.extend(events),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, expected);
}

#[tokio::test]
async fn a_watch_with_placements_reports_the_lease_of_each_session() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client).await, grant(&client).await);
    client.create_under(key(1), a).await.unwrap();
    client.create(key(2)).await.unwrap();
    let options = WatchOptions::snapshot().placements().heartbeat(Duration::from_millis(100));
    let mut watch = client.watch(options);
    assert!(matches!(next(&mut watch).await, WatchUpdate::Subscribed { .. }));
    assert_eq!(watch.places(), place(2));
    assert_eq!(synced(&mut watch).await, [(1, Some(a)), (2, None)]);
    assert_eq!(watch.places(), place(2));

    move_to(&client, 1, b).await;
    move_to(&client, 2, a).await;
    client.create_under(key(3), b).await.unwrap();
    assert!(client.destroy_under(key(1), b).await.unwrap());
    assert!(client.destroy(key(2)).await.unwrap());
    let events = [
        SessionEvent::moved(key(1), b, Some(a)),
        SessionEvent::moved(key(2), a, None),
        SessionEvent::created(key(3), Some(b)),
        SessionEvent::destroyed(key(1), DestroyReason::Released, Some(b)),
        SessionEvent::destroyed(key(2), DestroyReason::Requested, Some(a)),
    ];
    assert_events(&mut watch, &events).await;
    assert_eq!(watch.places(), place(7));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Heartbeat));
    assert_eq!(watch.places(), place(7));
}

#[tokio::test]
async fn a_watch_by_lease_reports_sessions_that_enter_and_leave_the_lease() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (own, other) = (grant(&client).await, grant(&client).await);
    client.batch_create_under(&[key(1), key(2), key(3)], own).await.unwrap();
    client.batch_create_under(&[key(4), key(5)], other).await.unwrap();
    let mut watch = client.watch(WatchOptions::snapshot().lease_ids([own]));
    assert_eq!(synced(&mut watch).await, [(1, Some(own)), (2, Some(own)), (3, Some(own))]);

    move_to(&client, 4, own).await;
    move_to(&client, 1, other).await;
    // These changes are not under the watched lease.
    assert!(client.destroy(key(1)).await.unwrap() && client.create_under(key(6), other).await.unwrap());
    assert!(client.destroy_under(key(2), own).await.unwrap());
    assert!(client.destroy(key(3)).await.unwrap());
    assert_eq!(client.revoke_lease(own).await.unwrap(), 1);
    let events = [
        SessionEvent::moved(key(4), own, Some(other)),
        SessionEvent::moved(key(1), other, Some(own)),
        SessionEvent::destroyed(key(2), DestroyReason::Released, Some(own)),
        SessionEvent::destroyed(key(3), DestroyReason::Requested, Some(own)),
        SessionEvent::destroyed(key(4), DestroyReason::LeaseRevoked, Some(own)),
    ];
    assert_events(&mut watch, &events).await;
}

#[tokio::test]
async fn a_watch_that_was_cut_off_resumes_with_its_leases() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let client = registry.client();
    let (own, other) = (grant(&client).await, grant(&client).await);
    client.batch_create_under(&[key(1), key(2)], own).await.unwrap();
    client.create_under(key(3), other).await.unwrap();
    let mut watch = network.client().watch(WatchOptions::snapshot().lease_ids([own]));
    assert_eq!(synced(&mut watch).await.len(), 2);
    let cursor = watch.cursor().unwrap().to_owned();

    network.cut();
    assert!(matches!(next(&mut watch).await, WatchUpdate::Disconnected { .. }));
    assert_eq!(watch.places(), []);
    assert!(client.create_under(key(4), other).await.unwrap());
    move_to(&client, 1, other).await;
    move_to(&client, 3, own).await;
    assert!(client.destroy_under(key(2), own).await.unwrap());
    network.mend();
    let events = [
        SessionEvent::moved(key(1), other, Some(own)),
        SessionEvent::moved(key(3), own, Some(other)),
        SessionEvent::destroyed(key(2), DestroyReason::Released, Some(own)),
    ];
    loop {
        match next(&mut watch).await {
            WatchUpdate::Disconnected { .. } => {}
            WatchUpdate::Subscribed { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(watch.places(), place(3), "the place at which the watch was cut off");
    assert_events(&mut watch, &events).await;
    assert_eq!(watch.places(), place(7));

    let mut later = client.watch(WatchOptions::after(cursor).lease_ids([own]));
    assert!(matches!(next(&mut later).await, WatchUpdate::Subscribed { .. }));
    assert_events(&mut later, &events).await;
}

#[tokio::test]
async fn watches_without_placements_report_no_leases() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client).await, grant(&client).await);
    client.create_under(key(1), a).await.unwrap();
    let mut plain = client.watch(WatchOptions::snapshot());
    assert_eq!(synced(&mut plain).await, [(1, None)]);
    let mut moves = client.watch(WatchOptions::default().types([EventType::Moved]));
    assert!(matches!(next(&mut moves).await, WatchUpdate::Subscribed { .. }));
    move_to(&client, 1, b).await;
    assert!(client.destroy_under(key(1), b).await.unwrap());
    assert_events(&mut plain, &[SessionEvent::destroyed(key(1), DestroyReason::Requested, None)]).await;
    assert_eq!(plain.places(), []);
    assert_events(&mut moves, &[SessionEvent::moved(key(1), b, Some(a))]).await;
}
