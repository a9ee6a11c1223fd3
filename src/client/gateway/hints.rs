//! Follows the gateway's lease and the stream of its sessions, and records what they report in the book.

use std::{pin::pin, time::Duration};

use futures_util::future::{Either, select};

use super::{Shared, book::Left};
use crate::{
    client::{Client, Lease, LeaseEvent, WatchOptions, WatchUpdate},
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent},
};

/// The heartbeat of the stream. The watch takes a stream for dead after three missed heartbeats. Until then, the
/// gateway does not notice that sessions move.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Runs until the lease is dropped or revoked.
pub(super) async fn follow(shared: &Shared, lease: &Lease, client: &Client) {
    let mut events = lease.events();
    let mut id = shared.book().lease();
    loop {
        let event = {
            let stream = pin!(stream(shared, lease, client, id));
            match select(pin!(next_lease(&mut events)), stream).await {
                Either::Left((event, _)) => event,
                Either::Right((never, _)) => match never {},
            }
        };
        let Some(renewed) = event else { return };
        id = renewed;
        shared.book().renew(id);
        shared.wake();
    }
}

async fn next_lease(events: &mut crate::client::LeaseEvents) -> Option<LeaseId> {
    loop {
        if let LeaseEvent::Regranted(id) = events.next().await? {
            return Some(id);
        }
    }
}

/// Reads the stream of the sessions under lease `id`.
async fn stream(shared: &Shared, lease: &Lease, client: &Client, id: LeaseId) -> std::convert::Infallible {
    let mut watch = client.watch(WatchOptions::snapshot().lease_ids([id]).heartbeat(HEARTBEAT));
    shared.book().snapshot_begins();
    loop {
        match watch.next().await {
            Ok(WatchUpdate::Snapshot(sessions)) => {
                let mut book = shared.book();
                sessions.iter().for_each(|found| book.appeared(found.session, id));
            }
            Ok(WatchUpdate::Events(events)) => {
                let mut book = shared.book();
                for event in &events {
                    if has_ended(event, id) {
                        lease.check();
                    } else if let Some(left) = how_left(event, id) {
                        book.left(event.session, id, left);
                    } else if event.lease == Some(id) {
                        book.appeared(event.session, id);
                    }
                }
            }
            Ok(WatchUpdate::Reset(_)) => {
                // The registry may have lost its leases.
                lease.check();
                shared.book().snapshot_begins();
            }
            Ok(WatchUpdate::Synced { .. }) => shared.book().snapshot_ends(id),
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(lease_id = id.number(), %error, "cannot watch the sessions of the gateway: retrying");
                continue;
            }
        }
        shared.wake();
    }
}

/// Returns whether the session was destroyed because the lease has ended. The gateway then keeps the connection, and
/// registers the session again under its next lease.
fn has_ended(event: &SessionEvent, id: LeaseId) -> bool {
    let by_lease = [DestroyReason::LeaseExpired, DestroyReason::LeaseRevoked].map(SessionChange::Destroyed);
    event.lease == Some(id) && by_lease.contains(&event.change)
}

/// Returns how the session has left the lease, if it has.
fn how_left(event: &SessionEvent, id: LeaseId) -> Option<Left> {
    match (event.change, event.lease) {
        (SessionChange::Moved { .. }, Some(to)) if to != id => Some(Left::Moved(to)),
        (SessionChange::Destroyed(reason), _) => Some(Left::Destroyed(reason)),
        _ => None,
    }
}
