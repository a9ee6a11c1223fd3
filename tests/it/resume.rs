//! The Rust client against the real server, including a restart of the server.

use std::{net::SocketAddr, time::Duration};

use sessiond::{
    client::{Client, ClientError, ResetReason, Watch, WatchOptions, WatchUpdate},
    session::{DestroyReason, SessionChange, SessionKey},
};

use crate::{
    fake::soon,
    server::{Running, config},
};

fn sessions(ids: &[i64]) -> Vec<SessionKey> {
    ids.iter().map(|&id| SessionKey::new(3, id)).collect()
}

async fn next(watch: &mut Watch) -> WatchUpdate {
    soon(watch.next()).await.expect("the watch continues")
}

/// Returns the next update other than heartbeats and failed attempts to connect.
async fn next_relevant(watch: &mut Watch) -> WatchUpdate {
    loop {
        match next(watch).await {
            WatchUpdate::Heartbeat | WatchUpdate::Disconnected { .. } => {}
            update => return update,
        }
    }
}

async fn snapshot(watch: &mut Watch) -> Vec<SessionKey> {
    let mut held = Vec::new();
    loop {
        match next(watch).await {
            WatchUpdate::Snapshot(part) => held.extend(part.iter().map(|found| found.session)),
            WatchUpdate::Synced { session_count } => {
                assert_eq!(session_count, held.len() as u64);
                held.sort_unstable();
                return held;
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn start_at(addr: SocketAddr) -> Running {
    soon(async {
        loop {
            // Another process may hold the port for a moment, because the system hands out free ports.
            match Running::try_with(config().listen(addr)).await {
                Ok(server) => return server,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn calls_and_watches_work_against_the_real_server() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut watch = client.watch(WatchOptions::snapshot().heartbeat(Duration::from_millis(100)));
    assert!(client.create(SessionKey::new(3, 1)).await.unwrap());
    let WatchUpdate::Subscribed { heartbeat, .. } = next(&mut watch).await else { panic!("subscribed comes first") };
    assert_eq!(heartbeat, Duration::from_millis(100));
    assert_eq!(snapshot(&mut watch).await, sessions(&[1]));
    assert!(matches!(next(&mut watch).await, WatchUpdate::Heartbeat));
    assert_eq!(client.batch_create(&sessions(&[1, 2])).await.unwrap(), [false, true]);
    let WatchUpdate::Events(events) = next_relevant(&mut watch).await else { panic!("events") };
    assert_eq!((events[0].session, events[0].change), (SessionKey::new(3, 2), SessionChange::Created));
    assert!(client.destroy(SessionKey::new(3, 2)).await.unwrap());
    let WatchUpdate::Events(events) = next_relevant(&mut watch).await else { panic!("events") };
    assert_eq!(events[0].change, SessionChange::Destroyed(DestroyReason::Requested));
    assert_eq!(client.batch_has(&sessions(&[1, 2])).await.unwrap(), [true, false]);

    let error = soon(client.watch(WatchOptions::after("nonsense")).next()).await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("MALFORMED_CURSOR"));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_watch_survives_a_restart_of_the_server() {
    let server = Running::start().await;
    let addr = server.addr;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut watch = client.watch(WatchOptions::snapshot());
    client.batch_create(&sessions(&[1, 2])).await.unwrap();
    let WatchUpdate::Subscribed { registry_id: first, .. } = next(&mut watch).await else {
        panic!("subscribed comes first")
    };
    assert_eq!(snapshot(&mut watch).await, sessions(&[1, 2]));

    let (update, ()) = tokio::join!(
        async {
            assert!(matches!(next(&mut watch).await, WatchUpdate::Heartbeat), "the last heartbeat, with the cursor");
            next(&mut watch).await
        },
        server.stopped()
    );
    let WatchUpdate::Disconnected { error, retry_in } = update else { panic!("{update:?}") };
    assert_eq!(error.reason().as_deref(), Some("SERVER_DRAINING"));
    assert!(retry_in >= error.retry_after().unwrap());
    let error = client.create(SessionKey::new(3, 7)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)) && error.is_retryable(), "{error:?}");

    let server = start_at(addr).await;
    assert!(client.create(SessionKey::new(3, 7)).await.unwrap());
    let WatchUpdate::Subscribed { registry_id, .. } = next_relevant(&mut watch).await else {
        panic!("the watch subscribes again")
    };
    assert_ne!(registry_id, first, "the sessions in memory are gone with their registry");
    assert!(matches!(next(&mut watch).await, WatchUpdate::Reset(ResetReason::CursorForeign)));
    assert_eq!(snapshot(&mut watch).await, sessions(&[7]));
    assert!(client.create(SessionKey::new(3, 8)).await.unwrap());
    assert!(matches!(next_relevant(&mut watch).await, WatchUpdate::Events(_)));
    let resets = server.subject.stats().resets;
    assert_eq!((resets.cursor_foreign, resets.total()), (1, 1));
}
