//! The events of a lease.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::session::LeaseId;

/// A change in the state of a [`Lease`](super::Lease).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseEvent {
    /// The lease is gone, or may be gone because the registry could not be reached for a whole ttl.
    ///
    /// If the lease is gone, so are its sessions. If the registry itself was away, the lease and its sessions may have
    /// survived. One of the other events follows as soon as the registry answers.
    Lost,
    /// The registry answers again, and the lease and its sessions have survived.
    ///
    /// The gateway only needs to make the calls that failed in the meantime.
    Recovered,
    /// A new lease has replaced the one that is gone, and no session is under it yet.
    ///
    /// Register all sessions again with [`Client::batch_take`](crate::client::Client::batch_take) and `None`, which
    /// leaves sessions that have moved to another gateway where they are. If the loss and the new grant both happened
    /// since the last event, only `Regranted` is returned.
    Regranted(LeaseId),
}

/// The lease that is held, or the last one that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseState {
    pub(super) id: LeaseId,
    pub(super) is_held: bool,
}

/// The events of a lease, returned by [`Lease::events`](super::Lease::events). It does not keep the lease alive.
///
/// Call [`next`](Self::next) in a loop, or use this as a `futures` `Stream`. However late you read, the events are up
/// to date and take a constant amount of memory: events that are out of date by then are left out. A
/// [`LeaseEvent::Regranted`] is left out only in favour of a newer one.
#[derive(Debug)]
#[must_use]
pub struct LeaseEvents {
    state: watch::Receiver<LeaseState>,
    changes: WatchStream<LeaseState>,
    /// The state that the events returned so far lead to.
    reported: LeaseState,
}

impl LeaseEvents {
    pub(super) fn new(state: watch::Receiver<LeaseState>, granted: LeaseId) -> Self {
        Self { changes: WatchStream::new(state.clone()), state, reported: LeaseState { id: granted, is_held: true } }
    }

    /// Waits for the next event. Returns `None` once the [`Lease`](super::Lease) has been dropped or revoked.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe: if the future is dropped, no event is lost.
    pub async fn next(&mut self) -> Option<LeaseEvent> {
        StreamExt::next(self).await
    }

    fn event_for(&mut self, now: LeaseState) -> Option<LeaseEvent> {
        let reported = self.reported;
        if !now.is_held {
            // Keep the id of the last lease that was reported. A lease granted and lost in between has not been
            // reported, so it must come as `Regranted` if it recovers.
            self.reported.is_held = false;
            return reported.is_held.then_some(LeaseEvent::Lost);
        }
        self.reported = now;
        if now.id != reported.id {
            Some(LeaseEvent::Regranted(now.id))
        } else {
            (!reported.is_held).then_some(LeaseEvent::Recovered)
        }
    }
}

impl Clone for LeaseEvents {
    fn clone(&self) -> Self {
        let Self { state, reported, .. } = self;
        Self { state: state.clone(), changes: WatchStream::new(state.clone()), reported: *reported }
    }
}

/// Returns what [`LeaseEvents::next`] returns. The stream ends once the [`Lease`](super::Lease) has been dropped or
/// revoked.
impl Stream for LeaseEvents {
    type Item = LeaseEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LeaseEvent>> {
        while let Some(now) = ready!(self.changes.poll_next_unpin(context)) {
            if let Some(event) = self.event_for(now) {
                return Poll::Ready(Some(event));
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outdated_events_are_left_out() {
        let id = |number| LeaseId::from_number(number).unwrap();
        let held = |number| LeaseState { id: id(number), is_held: true };
        let lost = |number| LeaseState { id: id(number), is_held: false };
        let (_sender, receiver) = watch::channel(held(1));
        let mut events = LeaseEvents::new(receiver, id(1));
        let table = [
            (held(1), None),
            (lost(1), Some(LeaseEvent::Lost)),
            (lost(1), None),
            (held(1), Some(LeaseEvent::Recovered)),
            // The loss in between was never reported.
            (held(2), Some(LeaseEvent::Regranted(id(2)))),
            // Lease 3 was granted and lost without being reported, so it cannot recover.
            (lost(3), Some(LeaseEvent::Lost)),
            (held(3), Some(LeaseEvent::Regranted(id(3)))),
        ];
        for (now, event) in table {
            assert_eq!(events.event_for(now), event, "{now:?}");
        }
    }
}
