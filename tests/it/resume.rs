//! The Rust client against the real server, also over the server's end and its return.

use std::{net::SocketAddr, time::Duration};

use sessiond::{
    client::{Client, ClientError, ResetReason, Watch, WatchOptions, WatchUpdate},
    server::ServerConfig,
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
    soon(watch.next()).await.expect("an update")
}

/// Passes over heartbeats, and over tries to connect that fail.
async fn next_of_note(watch: &mut Watch) -> WatchUpdate {
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
            // Somebody may have the port for a moment: the system gives free ones to others, too.
            match Running::try_with(ServerConfig { listen: addr.into(), ..config() }).await {
                Ok(server) => return server,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_client_and_the_server_understand_each_other() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut watch = client.watch(WatchOptions::snapshot().heartbeat(Duration::from_millis(100)));
    assert!(client.create(SessionKey::new(3, 1)).await.unwrap());
    let WatchUpdate::Subscribed { heartbeat, .. } = next(&mut watch).await else { panic!("first of all") };
    assert_eq!(heartbeat, Duration::from_millis(100));
    assert_eq!(snapshot(&mut watch).await, sessions(&[1]));
    assert!(matches!(next(&mut watch).await, WatchUpdate::Heartbeat));
    assert_eq!(client.batch_create(&sessions(&[1, 2])).await.unwrap(), [false, true]);
    let WatchUpdate::Events(events) = next_of_note(&mut watch).await else { panic!("events") };
    assert_eq!((events[0].session, events[0].change), (SessionKey::new(3, 2), SessionChange::Created));
    assert!(client.destroy(SessionKey::new(3, 2)).await.unwrap());
    let WatchUpdate::Events(events) = next_of_note(&mut watch).await else { panic!("events") };
    assert_eq!(events[0].change, SessionChange::Destroyed(DestroyReason::Requested));
    assert_eq!(client.batch_has(&sessions(&[1, 2])).await.unwrap(), [true, false]);

    let error = soon(client.watch(WatchOptions::after("nonsense")).next()).await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("MALFORMED_CURSOR"));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart() {
    let server = Running::start().await;
    let addr = server.addr;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut watch = client.watch(WatchOptions::snapshot());
    client.batch_create(&sessions(&[1, 2])).await.unwrap();
    let WatchUpdate::Subscribed { registry_id: first, .. } = next(&mut watch).await else { panic!("first of all") };
    assert_eq!(snapshot(&mut watch).await, sessions(&[1, 2]));

    let (update, ()) = tokio::join!(
        async {
            assert!(matches!(next(&mut watch).await, WatchUpdate::Heartbeat), "the last, with the place");
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
    let WatchUpdate::Subscribed { registry_id, .. } = next_of_note(&mut watch).await else { panic!("again") };
    assert_ne!(registry_id, first, "the sessions in memory are gone with their registry");
    assert!(matches!(next(&mut watch).await, WatchUpdate::Reset(ResetReason::CursorForeign)));
    assert_eq!(snapshot(&mut watch).await, sessions(&[7]));
    assert!(client.create(SessionKey::new(3, 8)).await.unwrap());
    assert!(matches!(next_of_note(&mut watch).await, WatchUpdate::Events(_)));
    let resets = server.subject.stats().resets;
    assert_eq!((resets.cursor_foreign, resets.total()), (1, 1));
}
