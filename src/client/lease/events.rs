//! What becomes of a lease.

use tokio::sync::watch;

use crate::session::LeaseId;

/// What became of a [`Lease`](super::Lease).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseEvent {
    /// The lease is gone, or the registry could not be reached for its whole ttl, so that it may be. Its sessions are
    /// destroyed then, where it was not the registry itself that was away. One of the other events follows as soon as
    /// the registry answers.
    Lost,
    /// The registry answers again, and the lease has outlived it: so have its sessions. Nothing needs to be done but
    /// what could not be done meanwhile.
    Recovered,
    /// There is a new lease in place of the one that is gone, and no session is under it: register them all again with
    /// [`Client::batch_take`](crate::client::Client::batch_take) and `None`, which steals none that have moved since.
    /// Comes without `Lost` where both happened since the last event.
    Regranted(LeaseId),
}

/// The lease that is held, or was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseState {
    pub(super) id: LeaseId,
    pub(super) is_held: bool,
}

/// The events of a lease, made by [`Lease::events`](super::Lease::events). Does not keep the lease.
///
/// It is always up to date and takes no memory however late it is asked: what happened since the last event and does
/// not count any more is left out. [`LeaseEvent::Regranted`] is never left out but for a later one.
#[derive(Clone, Debug)]
pub struct LeaseEvents {
    state: watch::Receiver<LeaseState>,
    /// What follows from the events so far: the lease that the sessions are under.
    told: LeaseState,
}

impl LeaseEvents {
    pub(super) fn new(state: watch::Receiver<LeaseState>, granted: LeaseId) -> Self {
        Self { state, told: LeaseState { id: granted, is_held: true } }
    }

    /// Waits for the next event. None when the [`Lease`](super::Lease) was dropped or revoked.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: when the future is dropped no event is lost.
    pub async fn next(&mut self) -> Option<LeaseEvent> {
        loop {
            let now = *self.state.borrow_and_update();
            if let Some(event) = self.tell(now) {
                return Some(event);
            }
            self.state.changed().await.ok()?;
        }
    }

    fn tell(&mut self, now: LeaseState) -> Option<LeaseEvent> {
        let told = self.told;
        if !now.is_held {
            // The id stays that of the last lease that was told of: had there been another in between, then nobody
            // knows of it yet, and it must come as a new one if it recovers.
            self.told.is_held = false;
            return told.is_held.then_some(LeaseEvent::Lost);
        }
        self.told = now;
        if now.id != told.id {
            Some(LeaseEvent::Regranted(now.id))
        } else {
            (!told.is_held).then_some(LeaseEvent::Recovered)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_still_counts_is_told() {
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
            // Lost in between, unseen.
            (held(2), Some(LeaseEvent::Regranted(id(2)))),
            // Granted and lost in between: nobody knows of it, so it cannot recover.
            (lost(3), Some(LeaseEvent::Lost)),
            (held(3), Some(LeaseEvent::Regranted(id(3)))),
        ];
        for (now, event) in table {
            assert_eq!(events.tell(now), event, "{now:?}");
        }
    }
}
