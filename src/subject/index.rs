//! Finds the observers that watch a session, so that a change costs what those cost and not what all do.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::Arc,
    task::Context,
};

use parking_lot::Mutex;

use super::filter::Filter;
use crate::{
    relay::Waiter,
    session::{AuthKeyId, SessionEvent, SessionId},
};

/// The most events that wait in a mailbox, which takes 32 KiB then. An observer that falls further behind reads the log instead.
const MAILBOX_EVENTS: usize = 1024;

/// The mailboxes of the observers that filter by id, by what they watch.
///
/// The maps are keyed by chance (`RandomState`), because ids are chosen by clients.
#[derive(Default)]
pub(super) struct FilterIndex {
    /// Those that name sessions, whether or not they name auth keys too.
    by_session: HashMap<SessionId, Vec<Arc<Mailbox>>>,
    /// Those that name auth keys alone.
    by_auth_key: HashMap<AuthKeyId, Vec<Arc<Mailbox>>>,
}

/// The events that an observer has yet to see, put there by the publisher.
pub(super) struct Mailbox {
    filter: Arc<Filter>,
    state: Mutex<Mail>,
}

#[derive(Default)]
struct Mail {
    /// Each with the number of its chunk.
    events: VecDeque<(u64, SessionEvent)>,
    overflowed: bool,
    waiter: Option<Waiter>,
}

/// What was in a mailbox.
pub(super) enum Taken {
    /// All of the chunks before the one asked for.
    Events(Vec<SessionEvent>),
    /// There were more than it holds, and they are gone.
    Overflow,
}

impl FilterIndex {
    pub(super) fn insert(&mut self, filter: &Arc<Filter>) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox { filter: Arc::clone(filter), state: Mutex::default() });
        if filter.session_ids.is_empty() {
            for id in &filter.auth_key_ids {
                self.by_auth_key.entry(*id).or_default().push(Arc::clone(&mailbox));
            }
        } else {
            for id in &filter.session_ids {
                self.by_session.entry(*id).or_default().push(Arc::clone(&mailbox));
            }
        }
        mailbox
    }

    pub(super) fn remove(&mut self, mailbox: &Arc<Mailbox>) {
        if mailbox.filter.session_ids.is_empty() {
            mailbox.filter.auth_key_ids.iter().for_each(|id| remove_from(&mut self.by_auth_key, *id, mailbox));
        } else {
            mailbox.filter.session_ids.iter().for_each(|id| remove_from(&mut self.by_session, *id, mailbox));
        }
    }

    /// Puts the events of chunk number `chunk` into the mailboxes of those who watch them, and those who wait into `woken`, to
    /// be woken when the log has the chunk.
    pub(super) fn deliver(&self, chunk: u64, events: &[SessionEvent], woken: &mut Vec<Waiter>) {
        if self.by_session.is_empty() && self.by_auth_key.is_empty() {
            return;
        }
        for event in events {
            let by_session = self.by_session.get(&event.session.session_id).into_iter().flatten();
            let by_auth_key = self.by_auth_key.get(&event.session.auth_key_id).into_iter().flatten();
            for mailbox in by_session.chain(by_auth_key) {
                mailbox.deliver(chunk, event, woken);
            }
        }
    }

    /// Takes all who wait, because something befell the log as a whole.
    pub(super) fn take_waiters(&self, woken: &mut Vec<Waiter>) {
        for mailbox in self.by_session.values().chain(self.by_auth_key.values()).flatten() {
            woken.extend(mailbox.state.lock().waiter.take());
        }
    }
}

fn remove_from<K: Eq + Hash>(index: &mut HashMap<K, Vec<Arc<Mailbox>>>, id: K, mailbox: &Arc<Mailbox>) {
    if let Entry::Occupied(mut watching) = index.entry(id) {
        watching.get_mut().retain(|other| !Arc::ptr_eq(other, mailbox));
        if watching.get().is_empty() {
            watching.remove();
        }
    }
}

impl Mailbox {
    fn deliver(&self, chunk: u64, event: &SessionEvent, woken: &mut Vec<Waiter>) {
        if !self.filter.passes(event) {
            return;
        }
        let mut mail = self.state.lock();
        if mail.events.len() == MAILBOX_EVENTS {
            mail.overflowed = true;
            mail.events = VecDeque::new();
        }
        if !mail.overflowed {
            mail.events.push_back((chunk, *event));
        }
        woken.extend(mail.waiter.take());
    }

    /// Forgets what is there, and that there was too much.
    pub(super) fn clear(&self) {
        let mut mail = self.state.lock();
        mail.events.clear();
        mail.overflowed = false;
    }

    /// Has the next event wake the task.
    pub(super) fn wait(&self, context: &Context<'_>) {
        match &mut self.state.lock().waiter {
            Some(waiter) => waiter.renew(context),
            none => *none = Some(Waiter::new(context)),
        }
    }

    /// Takes the events of the chunks before number `before`.
    pub(super) fn take(&self, before: u64, context: &Context<'_>) -> Taken {
        let mut mail = self.state.lock();
        if mail.overflowed {
            return Taken::Overflow;
        }
        let ready = mail.events.iter().take_while(|(chunk, _)| *chunk < before).count();
        if ready == 0 && !mail.events.is_empty() {
            // The publisher put them here before this task waited, and is about to append their chunk: look again soon.
            context.waker().wake_by_ref();
        }
        Taken::Events(mail.events.drain(..ready).map(|(_, event)| event).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        task::{Wake, Waker},
    };

    use super::*;
    use crate::session::{SessionChange, SessionKey};

    fn filter(session_ids: &[i64], auth_key_ids: &[i64]) -> Arc<Filter> {
        Arc::new(Filter {
            session_ids: session_ids.iter().copied().map(SessionId).collect(),
            auth_key_ids: auth_key_ids.iter().copied().map(AuthKeyId).collect(),
            ..Filter::default()
        })
    }

    fn created(auth_key_id: i64, session_id: i64) -> SessionEvent {
        SessionEvent { session: SessionKey::new(auth_key_id, session_id), change: SessionChange::Created }
    }

    #[test]
    fn a_mailbox_that_nobody_empties_is_bounded() {
        let mut index = FilterIndex::default();
        let mailbox = index.insert(&filter(&[1], &[]));
        let context = Context::from_waker(Waker::noop());
        for chunk in 0..100_000 {
            index.deliver(chunk, &[created(0, 1), created(0, 2)], &mut Vec::new());
            assert!(mailbox.state.lock().events.capacity() <= MAILBOX_EVENTS);
        }
        assert!(matches!(mailbox.take(u64::MAX, &context), Taken::Overflow));
        assert_eq!(mailbox.state.lock().events.capacity(), 0);

        mailbox.clear();
        index.deliver(7, &[created(0, 1)], &mut Vec::new());
        assert!(matches!(mailbox.take(8, &context), Taken::Events(events) if events == [created(0, 1)]));
    }

    #[test]
    fn events_wait_for_their_chunk_to_be_in_the_log_and_have_the_observer_look_again() {
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
        let mailbox = index.insert(&filter(&[1], &[]));
        index.deliver(5, &[created(0, 1)], &mut Vec::new());
        assert!(matches!(mailbox.take(5, &context), Taken::Events(events) if events.is_empty()));
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(matches!(mailbox.take(6, &context), Taken::Events(events) if events == [created(0, 1)]));
    }

    #[test]
    fn a_mailbox_gets_an_event_once_however_many_of_its_filters_pass_it() {
        let mut index = FilterIndex::default();
        let mailbox = index.insert(&filter(&[1, 2], &[7, 8]));
        index.deliver(0, &[created(7, 1), created(8, 2), created(9, 1), created(7, 3)], &mut Vec::new());
        let taken = mailbox.take(1, &Context::from_waker(Waker::noop()));
        assert!(matches!(taken, Taken::Events(events) if events == [created(7, 1), created(8, 2)]));
    }

    #[test]
    fn an_index_that_everybody_has_left_is_empty() {
        let mut index = FilterIndex::default();
        let filters = [filter(&[1, 2], &[]), filter(&[1], &[7]), filter(&[], &[7, 8]), filter(&[], &[7])];
        let mailboxes: Vec<_> = filters.iter().chain(&filters).map(|filter| index.insert(filter)).collect();
        for mailbox in &mailboxes {
            index.remove(mailbox);
            assert_eq!(Arc::strong_count(mailbox), 1);
        }
        assert!(index.by_session.is_empty() && index.by_auth_key.is_empty());
    }
}
