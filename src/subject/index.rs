//! The filter index: finds the observers that watch a session, so that the cost of a change depends on those observers
//! and not on all.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    hash::{Hash, Hasher},
    sync::Arc,
    task::Context,
};

use parking_lot::Mutex;

use super::filter::Filter;
use crate::{
    relay::Waiter,
    session::{AuthKeyId, LeaseId, SessionChange, SessionEvent, SessionId},
    storage::{Place, Position},
};

/// The maximum number of unread events in a mailbox, which then takes 32 KiB. An observer that falls further behind
/// reads the log instead.
const MAILBOX_EVENTS: usize = 1024;

/// The mailboxes of the observers that filter by id, indexed by the ids that they watch.
///
/// The maps hash with a random key (`RandomState`), because clients choose the ids.
#[derive(Default)]
pub(super) struct FilterIndex {
    /// Filters that name session ids, with or without auth keys or leases.
    by_session: HashMap<SessionId, Watchers>,
    /// Filters that name auth keys but no session ids.
    by_auth_key: HashMap<AuthKeyId, Watchers>,
    /// Filters that name only leases.
    by_lease: HashMap<LeaseId, Watchers>,
    /// Every mailbox once, however many ids it watches.
    mailboxes: HashSet<ByAddress>,
}

/// An id under which a mailbox is indexed.
#[derive(Clone, Copy)]
pub(super) enum WatchedId {
    Session(SessionId),
    AuthKey(AuthKeyId),
    Lease(LeaseId),
}

/// A mailbox compared by address.
struct ByAddress(Arc<Mailbox>);

impl PartialEq for ByAddress {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByAddress {}

impl Hash for ByAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// The mailboxes that watch one id: a list, or a hash set if there are many, so that removing one does not search
/// through thousands.
enum Watchers {
    Few(Vec<Arc<Mailbox>>),
    #[expect(clippy::box_collection, reason = "most ids have a list, which must not take the space of a hash set")]
    Many(Box<HashSet<ByAddress>>),
}

/// A list longer than this becomes a hash set. A set that has shrunk to a quarter of this becomes a list again.
const FEW: usize = 32;

impl Default for Watchers {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Watchers {
    fn add(&mut self, mailbox: &Arc<Mailbox>) {
        match self {
            Self::Few(list) if list.len() == FEW => {
                let table = list.drain(..).chain([Arc::clone(mailbox)]).map(ByAddress);
                *self = Self::Many(Box::new(table.collect()));
            }
            Self::Few(list) => list.push(Arc::clone(mailbox)),
            Self::Many(table) => drop(table.insert(ByAddress(Arc::clone(mailbox)))),
        }
    }

    /// Removes a mailbox. Returns whether none is left.
    fn remove(&mut self, mailbox: &Arc<Mailbox>) -> bool {
        match self {
            Self::Few(list) => {
                if let Some(at) = list.iter().position(|other| Arc::ptr_eq(other, mailbox)) {
                    list.swap_remove(at);
                }
                list.is_empty()
            }
            Self::Many(table) => {
                table.remove(&ByAddress(Arc::clone(mailbox)));
                if table.len() <= FEW / 4 {
                    *self = Self::Few(table.drain().map(|ByAddress(mailbox)| mailbox).collect());
                }
                false
            }
        }
    }

    fn for_each(&self, mut visit: impl FnMut(&Mailbox)) {
        match self {
            Self::Few(list) => list.iter().for_each(|mailbox| visit(mailbox)),
            Self::Many(table) => table.iter().for_each(|ByAddress(mailbox)| visit(mailbox)),
        }
    }
}

/// The events that the publisher has put aside for an observer and that the observer has not read yet.
pub(super) struct Mailbox {
    filter: Arc<Filter>,
    state: Mutex<MailboxState>,
}

#[derive(Default)]
struct MailboxState {
    /// Each event with the number of its chunk and its place in the storage's log.
    events: VecDeque<(u64, Place, SessionEvent)>,
    overflowed: bool,
    waiter: Option<Waiter>,
}

/// The content of a mailbox.
pub(super) enum Taken {
    /// The events of all chunks before the requested one, and the place of the last event.
    Events(Vec<SessionEvent>, Place),
    /// The mailbox overflowed, and its events are gone.
    Overflow,
}

impl FilterIndex {
    pub(super) fn insert(&mut self, mailbox: &Arc<Mailbox>, ids: impl Iterator<Item = WatchedId>) {
        self.mailboxes.insert(ByAddress(Arc::clone(mailbox)));
        for id in ids {
            match id {
                WatchedId::Session(id) => self.by_session.entry(id).or_default().add(mailbox),
                WatchedId::AuthKey(id) => self.by_auth_key.entry(id).or_default().add(mailbox),
                WatchedId::Lease(id) => self.by_lease.entry(id).or_default().add(mailbox),
            }
        }
    }

    pub(super) fn remove(&mut self, mailbox: &Arc<Mailbox>, ids: impl Iterator<Item = WatchedId>) {
        self.mailboxes.remove(&ByAddress(Arc::clone(mailbox)));
        for id in ids {
            match id {
                WatchedId::Session(id) => remove_from(&mut self.by_session, id, mailbox),
                WatchedId::AuthKey(id) => remove_from(&mut self.by_auth_key, id, mailbox),
                WatchedId::Lease(id) => remove_from(&mut self.by_lease, id, mailbox),
            }
        }
    }

    /// Puts the events of chunk number `chunk` into the mailboxes of the observers that watch them. `first` is the
    /// place of the first event. Adds the waiting observers to `woken`, which must be woken once the log has the chunk.
    pub(super) fn deliver(&self, chunk: u64, first: Place, events: &[SessionEvent], woken: &mut Vec<Waiter>) {
        if self.mailboxes.is_empty() {
            return;
        }
        for (position, event) in (first.position.0..).map(Position).zip(events) {
            let place = Place { position, ..first };
            let by_session = self.by_session.get(&event.session.session_id);
            let by_auth_key = self.by_auth_key.get(&event.session.auth_key_id);
            let by_lease = event.lease.and_then(|lease| self.by_lease.get(&lease));
            for watchers in by_session.into_iter().chain(by_auth_key).chain(by_lease) {
                watchers.for_each(|mailbox| mailbox.deliver(chunk, place, event, woken));
            }
            if let SessionChange::Moved { previous: Some(previous) } = event.change
                && let Some(watchers) = self.by_lease.get(&previous)
            {
                // Mailboxes that watch both leases have the event already.
                let has_it = |mailbox: &Mailbox| event.lease.is_some_and(|to| mailbox.filter.lease_ids.contains(&to));
                watchers.for_each(|mailbox| {
                    if !has_it(mailbox) {
                        mailbox.deliver(chunk, place, event, woken);
                    }
                });
            }
        }
    }

    /// Takes all waiters, because the log as a whole was lost or closed.
    pub(super) fn take_parked(&self, woken: &mut Vec<Waiter>) {
        for ByAddress(mailbox) in &self.mailboxes {
            woken.extend(mailbox.state.lock().waiter.take());
        }
    }
}

fn remove_from<K: Eq + Hash>(index: &mut HashMap<K, Watchers>, id: K, mailbox: &Arc<Mailbox>) {
    if let Entry::Occupied(mut watching) = index.entry(id)
        && watching.get_mut().remove(mailbox)
    {
        watching.remove();
    }
}

impl Mailbox {
    pub(super) fn new(filter: &Arc<Filter>) -> Arc<Self> {
        Arc::new(Self { filter: Arc::clone(filter), state: Mutex::default() })
    }

    /// Returns the ids under which the mailbox is indexed: those of the kind that matches the fewest sessions.
    pub(super) fn watched_ids(&self) -> impl Iterator<Item = WatchedId> + use<'_> {
        let Filter { session_ids, auth_key_ids, lease_ids, .. } = &*self.filter;
        let auth_keys = session_ids.is_empty().then_some(auth_key_ids);
        let leases = (session_ids.is_empty() && auth_key_ids.is_empty()).then_some(lease_ids);
        let auth_keys = auth_keys.into_iter().flatten().map(|id| WatchedId::AuthKey(*id));
        let leases = leases.into_iter().flatten().map(|id| WatchedId::Lease(*id));
        session_ids.iter().map(|id| WatchedId::Session(*id)).chain(auth_keys).chain(leases)
    }

    fn deliver(&self, chunk: u64, place: Place, event: &SessionEvent, woken: &mut Vec<Waiter>) {
        if !self.filter.passes(event) {
            return;
        }
        let mut mail = self.state.lock();
        if mail.events.len() == MAILBOX_EVENTS {
            mail.overflowed = true;
            mail.events = VecDeque::new();
        }
        if !mail.overflowed {
            mail.events.push_back((chunk, place, *event));
        }
        woken.extend(mail.waiter.take());
    }

    /// Empties the mailbox and clears its overflow.
    pub(super) fn clear(&self) {
        let mut mail = self.state.lock();
        mail.events.clear();
        mail.overflowed = false;
    }

    /// Registers the current task to be woken by the next event.
    pub(super) fn wait(&self, context: &Context<'_>) {
        match &mut self.state.lock().waiter {
            Some(waiter) => waiter.renew(context),
            none => *none = Some(Waiter::new(context)),
        }
    }

    /// Takes the events of all chunks before number `before`.
    pub(super) fn take(&self, before: u64, context: &Context<'_>) -> Taken {
        let mut mail = self.state.lock();
        if mail.overflowed {
            return Taken::Overflow;
        }
        let ready = mail.events.iter().take_while(|(chunk, ..)| *chunk < before).count();
        if ready == 0 && !mail.events.is_empty() {
            // The publisher put these events here before this task registered, and is about to append their chunk. Poll
            // again soon.
            context.waker().wake_by_ref();
        }
        let last = ready.checked_sub(1).map_or_else(Place::default, |last| mail.events[last].1);
        Taken::Events(mail.events.drain(..ready).map(|(.., event)| event).collect(), last)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        task::{Wake, Waker},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::session::SessionKey;

    fn filter(session_ids: &[i64], auth_key_ids: &[i64]) -> Arc<Filter> {
        Arc::new(Filter {
            session_ids: session_ids.iter().copied().map(SessionId).collect(),
            auth_key_ids: auth_key_ids.iter().copied().map(AuthKeyId).collect(),
            ..Filter::default()
        })
    }

    fn join(index: &mut FilterIndex, filter: &Arc<Filter>) -> Arc<Mailbox> {
        let mailbox = Mailbox::new(filter);
        index.insert(&mailbox, mailbox.watched_ids());
        mailbox
    }

    fn leave(index: &mut FilterIndex, mailbox: &Arc<Mailbox>) {
        index.remove(mailbox, mailbox.watched_ids());
    }

    fn created(auth_key_id: i64, session_id: i64) -> SessionEvent {
        SessionEvent::created(SessionKey::new(auth_key_id, session_id), None)
    }

    #[test]
    fn unread_mailbox_is_bounded() {
        let mut index = FilterIndex::default();
        let mailbox = join(&mut index, &filter(&[1], &[]));
        let context = Context::from_waker(Waker::noop());
        for chunk in 0..100_000 {
            index.deliver(chunk, Place::default(), &[created(0, 1), created(0, 2)], &mut Vec::new());
            assert!(mailbox.state.lock().events.capacity() <= MAILBOX_EVENTS);
        }
        assert!(matches!(mailbox.take(u64::MAX, &context), Taken::Overflow));
        assert_eq!(mailbox.state.lock().events.capacity(), 0);

        mailbox.clear();
        index.deliver(7, Place::default(), &[created(0, 1)], &mut Vec::new());
        assert!(matches!(mailbox.take(8, &context), Taken::Events(events, _) if events == [created(0, 1)]));
    }

    #[test]
    fn events_wait_until_the_log_has_their_chunk() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        let mut index = FilterIndex::default();
        let mailbox = join(&mut index, &filter(&[1], &[]));
        index.deliver(5, Place::default(), &[created(0, 1)], &mut Vec::new());
        assert!(matches!(mailbox.take(5, &context), Taken::Events(events, _) if events.is_empty()));
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(matches!(mailbox.take(6, &context), Taken::Events(events, _) if events == [created(0, 1)]));
    }

    #[test]
    fn event_is_delivered_once_when_several_filters_match_it() {
        let mut index = FilterIndex::default();
        let mailbox = join(&mut index, &filter(&[1, 2], &[7, 8]));
        index.deliver(
            0,
            Place::default(),
            &[created(7, 1), created(8, 2), created(9, 1), created(7, 3)],
            &mut Vec::new(),
        );
        let taken = mailbox.take(1, &Context::from_waker(Waker::noop()));
        assert!(matches!(taken, Taken::Events(events, _) if events == [created(7, 1), created(8, 2)]));
    }

    #[test]
    fn leaving_costs_an_observer_no_more_than_joining() {
        const OBSERVERS: usize = 10_000;
        let mut index = FilterIndex::default();
        let ids: Vec<i64> = (0..16).collect();
        let began = Instant::now();
        let mailboxes: Vec<_> = (0..OBSERVERS).map(|_| join(&mut index, &filter(&ids, &[]))).collect();
        let joining = began.elapsed();
        let began = Instant::now();
        mailboxes.iter().for_each(|mailbox| leave(&mut index, mailbox));
        let leaving = began.elapsed();
        // A linear search through the observers of an id would take hundreds of times as long.
        assert!(leaving < 10 * joining + Duration::from_millis(100), "{joining:?} to join, {leaving:?} to leave");
        assert!(index.by_session.is_empty());
    }

    #[test]
    fn index_is_empty_after_every_observer_has_left() {
        let mut index = FilterIndex::default();
        let filters = [filter(&[1, 2], &[]), filter(&[1], &[7]), filter(&[], &[7, 8]), filter(&[], &[7])];
        // A few observers of each filter, and then enough that their lists become hash sets.
        for times in [2, 3 * FEW] {
            let mut mailboxes: Vec<_> =
                (0..times).flat_map(|_| &filters).map(|filter| join(&mut index, filter)).collect();
            fastrand::shuffle(&mut mailboxes);
            while let Some(left) = mailboxes.pop() {
                leave(&mut index, &left);
                assert_eq!(Arc::strong_count(&left), 1);
                index.deliver(1, Place::default(), &[created(7, 1)], &mut Vec::new());
                assert!(mailboxes.iter().all(|mailbox| !mailbox.state.lock().events.is_empty()));
                mailboxes.iter().for_each(|mailbox| mailbox.clear());
            }
            assert!(index.by_session.is_empty() && index.by_auth_key.is_empty() && index.mailboxes.is_empty());
        }
    }
}
