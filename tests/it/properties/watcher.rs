//! An observer that is polled a step at a time, and writes down what it is told.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use sessiond::subject::{Cursor, Observer, Update};
use tokio::{task::unconstrained, time::timeout};

use super::{
    checker::{Broken, Promise, Trace},
    concurrent::DEADLINE,
    faulty::Tamper,
    told::{Message, Told},
};

/// More polls than any stream of these tests needs to come to rest.
const MANY: usize = 1_000_000;

pub(crate) struct Watcher {
    observer: Observer,
    pub(crate) trace: Trace,
    pub(crate) broken: Vec<Broken>,
    tamper: Tamper,
    woken: Arc<Woken>,
    /// Nothing else runs while it is polled: what is ready without a call of the waker is a call that was forgotten.
    is_alone: bool,
    /// The last poll said to wait for the waker.
    waits: bool,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Watcher {
    pub(crate) fn new(observer: Observer, trace: Trace) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        Self { observer, trace, broken: Vec::new(), tamper: Tamper::default(), woken, is_alone: true, waits: false }
    }

    /// For where others run on other threads.
    pub(crate) fn among_others(self) -> Self {
        Self { is_alone: false, ..self }
    }

    pub(crate) fn tampered(mut self, tamper: Tamper) -> Self {
        self.tamper = tamper;
        self
    }

    /// Polls once: what it gives is written down. None when there is nothing at present, or nothing more.
    pub(crate) fn poll(&mut self) -> Option<Told> {
        let was_woken = self.woken.0.swap(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        // The budget of the test's own task is not what is tested.
        let polled = pin!(unconstrained(self.observer.next())).poll(&mut Context::from_waker(&waker));
        if self.is_alone && self.waits && !was_woken && polled.is_ready() {
            self.broken.push(Broken::new(Promise::Live, format!("{polled:?} was ready, and nobody was woken for it")));
        }
        self.waits = polled.is_pending();
        let Poll::Ready(Some(update)) = polled else { return None };
        Some(self.write_down(&update))
    }

    fn write_down(&mut self, update: &Update) -> Told {
        let told = Told::of(update, &self.trace.filter);
        let cursor = self.observer.cursor().map(|cursor| cursor.to_string());
        let places = self.observer.places();
        let last = match update {
            // Without placements nobody asks for it.
            Update::Events(events) if places.is_some() => Some(events.last()),
            _ => None,
        };
        let message = Message { told: told.clone(), cursor, places: places.unwrap_or_default(), last };
        self.tamper.pass(message, &mut self.trace.told);
        told
    }

    /// Whether polling again gives nothing unless something happens.
    pub(crate) fn rests(&self) -> bool {
        self.waits && !self.woken.0.load(Ordering::SeqCst)
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.trace.told.last(), Some(Message { told: Told::Closed, .. }))
    }

    /// Polls until there is nothing more at present, letting other tasks run wherever the observer does.
    pub(crate) async fn drain(&mut self) {
        for _ in 0..MANY {
            if self.is_over() || self.rests() {
                return;
            }
            if self.poll().is_none() {
                tokio::task::yield_now().await;
            }
        }
        self.broken.push(Broken::new(Promise::Live, "the stream never rests"));
    }

    /// Reads to the end of a stream that ends, which may have to wait for its storage first.
    pub(crate) async fn read_out(&mut self) {
        self.drain().await;
        while !self.is_over() && matches!(timeout(DEADLINE, self.next()).await, Ok(Some(_))) {}
    }

    /// Waits for an update as a task does.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        self.waits = false;
        let update = self.observer.next().await?;
        Some(self.write_down(&update))
    }

    /// Waits until it is woken, be it for changes that it is not told of.
    pub(crate) async fn woken(&mut self) {
        self.waits = false;
        let mut is_woken = false;
        let update = poll_fn(|context| match self.observer.poll_next(context) {
            Poll::Pending if !std::mem::replace(&mut is_woken, true) => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
            Poll::Ready(update) => Poll::Ready(update),
        });
        if let Some(update) = update.await {
            self.write_down(&update);
        }
    }

    /// Drops the observer, and gives what it was told.
    pub(crate) fn leave(self) -> (Trace, Vec<Broken>) {
        (self.trace, self.broken)
    }

    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.observer.cursor()
    }
}
