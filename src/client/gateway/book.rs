//! The book of a gateway: a record of its sessions, their connections, and the work that is pending for each.
//!
//! The book makes no calls and awaits nothing. The loop in `rounds` takes a [`Plan`] from it, makes the calls, and
//! records the answers in it. `hints` records what the stream of the gateway's lease reports.

mod plan;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

pub(super) use self::plan::{Claim, Lookup, Plan};
use super::connection::{CloseReason, Signal};
use crate::{
    client::ClientError,
    session::{DestroyReason, LeaseId, SessionKey},
};

/// How old a connection may be when it takes a session from another gateway. The client of an older connection may have
/// gone to that gateway since.
const FRESH: Duration = Duration::from_secs(1);

/// Receives the answer to `connect`.
pub(super) type Reply = oneshot::Sender<Result<(), ClientError>>;

/// The sessions of a gateway.
#[derive(Debug)]
pub(super) struct Book {
    lease: LeaseId,
    is_stopped: bool,
    entries: HashMap<SessionKey, Entry>,
    /// The sessions with pending work, each once.
    queue: VecDeque<SessionKey>,
    /// Counts the snapshots of the stream, to find the sessions that are missing from the last one.
    snapshot: u32,
}

/// A session that has a connection here, or may be under one of the gateway's leases.
#[derive(Debug, Default)]
struct Entry {
    open: Vec<Open>,
    /// The leases of this gateway that the session may be under.
    under: Vec<LeaseId>,
    /// The lease that the session is under according to the registry's latest answer, if it is one of this gateway's.
    registered: Option<LeaseId>,
    /// How the session left the lease, according to the stream.
    hint: Option<Left>,
    /// The last snapshot that the session was in.
    seen: u32,
    /// Whether the stream has reported the session under the lease since the session was last in a plan. The answers to
    /// that plan may be older than the report.
    has_appeared: bool,
    is_queued: bool,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    signal: Arc<Signal>,
    /// `None` once the session is registered for this connection.
    opening: Option<Box<Opening>>,
}

/// A connection that waits for its session to be registered.
#[derive(Debug)]
struct Opening {
    since: Instant,
    step: Step,
    reply: Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// No call has been made for the connection yet.
    Waits,
    /// The session's holder is being looked up.
    LooksUp,
    /// The session is being taken from this lease, or from no lease. Retries use the same lease: a new lookup could
    /// find the lease of a newer connection, and take the session from it.
    Claims(Option<LeaseId>),
}

/// How a session left the gateway's lease, according to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Moved(LeaseId),
    Destroyed(DestroyReason),
    /// The session is missing from a snapshot.
    Missing,
}

impl Left {
    fn reason(self) -> CloseReason {
        match self {
            Self::Moved(to) => CloseReason::Moved { to },
            Self::Destroyed(reason) => CloseReason::Destroyed { reason: Some(reason) },
            Self::Missing => CloseReason::Destroyed { reason: None },
        }
    }
}

impl Entry {
    fn has_work(&self, lease: LeaseId) -> bool {
        if self.open.is_empty() {
            return !self.under.is_empty();
        }
        self.hint.is_some() || self.registered != Some(lease) || self.open.iter().any(|open| open.opening.is_some())
    }

    fn may_be_under(&mut self, lease: LeaseId) {
        if !self.under.contains(&lease) {
            self.under.push(lease);
        }
    }

    /// Records the registry's answer that the session is under `lease`, which is this gateway's.
    fn is_under(&mut self, lease: LeaseId) {
        self.registered = Some(lease);
        self.under.clear();
        self.under.push(lease);
    }

    /// Records the registry's answer that the session is not under `lease`.
    fn is_not_under(&mut self, lease: LeaseId) {
        if !self.has_appeared {
            self.under.retain(|under| *under != lease);
        }
    }

    fn is_registered(&self) -> bool {
        self.open.iter().any(|open| open.opening.is_none())
    }

    fn openings(&mut self) -> impl Iterator<Item = &mut Opening> {
        self.open.iter_mut().filter_map(|open| open.opening.as_deref_mut())
    }

    /// Closes the connections whose session is registered.
    fn close_registered(&mut self, reason: CloseReason) {
        self.open.retain(|open| {
            if open.opening.is_none() {
                open.signal.give(reason);
            }
            open.opening.is_some()
        });
        self.registered = None;
    }

    /// Answers the `connect` calls whose step `is_due`. Removes their connections if the answer is an error.
    fn answer(&mut self, is_due: impl Fn(Step) -> bool, answer: impl Fn() -> Result<(), ClientError>) {
        self.open.retain_mut(|open| match open.opening.take() {
            Some(opening) if is_due(opening.step) => {
                let answer = answer();
                let stays = answer.is_ok();
                // This fails if the caller of `connect` is gone. Dropping its `Connection` has then closed the
                // connection.
                let _ = opening.reply.send(answer);
                stays
            }
            opening => {
                open.opening = opening;
                true
            }
        });
    }
}

impl Book {
    pub(super) fn new(lease: LeaseId) -> Self {
        Self { lease, is_stopped: false, entries: HashMap::new(), queue: VecDeque::new(), snapshot: 0 }
    }

    pub(super) fn lease(&self) -> LeaseId {
        self.lease
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Adds a connection whose session is not registered yet. Fails it immediately if the gateway is stopped.
    pub(super) fn open(&mut self, session: SessionKey, signal: Arc<Signal>, since: Instant, reply: Reply) {
        if self.is_stopped {
            let _ = reply.send(Err(ClientError::GatewayStopped));
            return;
        }
        let opening = Some(Box::new(Opening { since, step: Step::Waits, reply }));
        self.entries.entry(session).or_default().open.push(Open { signal, opening });
        self.settle(session);
    }

    /// Removes a connection, if it is still in the book.
    pub(super) fn close(&mut self, session: SessionKey, signal: &Arc<Signal>) {
        let Some(entry) = self.entries.get_mut(&session) else { return };
        entry.open.retain(|open| !Arc::ptr_eq(&open.signal, signal));
        self.settle(session);
    }

    /// Closes all connections. Only sessions to destroy remain in the book.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.entries.retain(|_, entry| {
            let is_closed = entry.open.is_empty();
            entry.answer(|_| true, || Err(ClientError::GatewayStopped));
            entry.close_registered(CloseReason::Stopped);
            is_closed
        });
        self.queue.retain(|session| self.entries.contains_key(session));
    }

    /// Records that the gateway has a new lease, and queues all sessions with connections to be registered under it.
    pub(super) fn renew(&mut self, lease: LeaseId) {
        self.lease = lease;
        let open: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.has_work(lease)).map(|(session, _)| *session).collect();
        open.into_iter().for_each(|session| self.settle(session));
    }

    /// Records that the stream reported a session under `lease`.
    pub(super) fn appeared(&mut self, session: SessionKey, lease: LeaseId) {
        if lease != self.lease || self.is_stopped {
            return;
        }
        // If the session has no connection, a late call has created it. It will be destroyed.
        let entry = self.entries.entry(session).or_default();
        entry.may_be_under(lease);
        entry.hint = None;
        entry.has_appeared = true;
        entry.seen = self.snapshot;
        self.settle(session);
    }

    /// Records that the stream reported that a session has left `lease`.
    pub(super) fn left(&mut self, session: SessionKey, lease: LeaseId, left: Left) {
        let Some(entry) = self.entries.get_mut(&session).filter(|_| lease == self.lease) else { return };
        if entry.open.is_empty() {
            return;
        }
        if left == Left::Destroyed(DestroyReason::Released) {
            // Only this gateway releases its sessions: a late call has destroyed the session of a newer connection.
            // Register it again.
            entry.registered = None;
        } else {
            entry.hint = Some(left);
        }
        self.settle(session);
    }

    /// Records that the stream begins a snapshot.
    pub(super) fn snapshot_begins(&mut self) {
        self.snapshot = self.snapshot.wrapping_add(1);
    }

    /// Records that the snapshot of the sessions under `lease` is complete. Sessions that are missing from it may have
    /// left the lease.
    pub(super) fn snapshot_ends(&mut self, lease: LeaseId) {
        let missing = |entry: &Entry| entry.registered == Some(lease) && entry.seen != self.snapshot;
        let missing: Vec<_> =
            self.entries.iter().filter(|(_, entry)| missing(entry)).map(|(session, _)| *session).collect();
        missing.into_iter().for_each(|session| self.left(session, lease, Left::Missing));
    }

    /// Queues a session with pending work. Forgets a session that has neither pending work nor connections.
    fn settle(&mut self, session: SessionKey) {
        let Some(entry) = self.entries.get_mut(&session) else { return };
        if entry.open.is_empty() {
            entry.hint = None;
        }
        if !entry.has_work(self.lease) {
            // An entry stays while it is queued, so that it is queued only once however often its client reconnects.
            if entry.open.is_empty() && !entry.is_queued {
                self.entries.remove(&session);
            }
        } else if !std::mem::replace(&mut entry.is_queued, true) {
            self.queue.push_back(session);
        }
    }
}

#[cfg(test)]
mod tests;
