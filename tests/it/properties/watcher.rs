//! An observer that is polled step by step and records its messages.

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
    message::{Content, Message},
};

/// More polls than any stream in these tests needs to become idle.
const MANY: usize = 1_000_000;

pub(crate) struct Watcher {
    observer: Observer,
    pub(crate) trace: Trace,
    pub(crate) broken: Vec<Broken>,
    tamper: Tamper,
    woken: Arc<Woken>,
    /// Whether nothing else runs during a poll. If an update is then ready without a wake-up, the wake-up was
    /// forgotten.
    is_alone: bool,
    /// Whether the last poll was pending.
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

    /// Allows other threads to run during a poll.
    pub(crate) fn with_other_threads(self) -> Self {
        Self { is_alone: false, ..self }
    }

    pub(crate) fn tampered(mut self, tamper: Tamper) -> Self {
        self.tamper = tamper;
        self
    }

    /// Polls once and records the update. Returns None if none is ready or the stream is over.
    pub(crate) fn poll(&mut self) -> Option<Content> {
        let was_woken = self.woken.0.swap(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        // The task budget of the test itself must not interfere.
        let polled = pin!(unconstrained(self.observer.next())).poll(&mut Context::from_waker(&waker));
        if self.is_alone && self.waits && !was_woken && polled.is_ready() {
            self.broken
                .push(Broken::new(Promise::Live, format!("{polled:?} was ready, but the observer was not woken")));
        }
        self.waits = polled.is_pending();
        let Poll::Ready(Some(update)) = polled else { return None };
        Some(self.record(&update))
    }

    fn record(&mut self, update: &Update) -> Content {
        let content = Content::of(update, &self.trace.filter);
        let cursor = self.observer.cursor().map(|cursor| cursor.to_string());
        let places = self.observer.places();
        let last = match update {
            // Streams without placements do not report it.
            Update::Events(events) if places.is_some() => Some(events.last()),
            _ => None,
        };
        let message = Message { content: content.clone(), cursor, places: places.unwrap_or_default(), last };
        self.tamper.pass(message, &mut self.trace.messages);
        content
    }

    /// Whether nothing is ready until something happens.
    pub(crate) fn is_idle(&self) -> bool {
        self.waits && !self.woken.0.load(Ordering::SeqCst)
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.trace.messages.last(), Some(Message { content: Content::Closed, .. }))
    }

    /// Polls until nothing more is ready, letting other tasks run whenever the observer does.
    pub(crate) async fn drain(&mut self) {
        for _ in 0..MANY {
            if self.is_over() || self.is_idle() {
                return;
            }
            if self.poll().is_none() {
                tokio::task::yield_now().await;
            }
        }
        self.broken.push(Broken::new(Promise::Live, "the stream never becomes idle"));
    }

    /// Reads a stream that ends to its end. It may have to wait for its storage first.
    pub(crate) async fn read_until_closed(&mut self) {
        self.drain().await;
        while !self.is_over() && matches!(timeout(DEADLINE, self.next()).await, Ok(Some(_))) {}
    }

    /// Waits for an update as a task does.
    pub(crate) async fn next(&mut self) -> Option<Content> {
        self.waits = false;
        let update = self.observer.next().await?;
        Some(self.record(&update))
    }

    /// Waits until the observer is woken, even for changes that it does not receive.
    pub(crate) async fn woken(&mut self) {
        self.waits = false;
        let mut is_woken = false;
        let update = poll_fn(|context| match self.observer.poll_next(context) {
            Poll::Pending if !std::mem::replace(&mut is_woken, true) => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
            Poll::Ready(update) => Poll::Ready(update),
        });
        if let Some(update) = update.await {
            self.record(&update);
        }
    }

    /// Drops the observer, and returns what it received.
    pub(crate) fn leave(self) -> (Trace, Vec<Broken>) {
        (self.trace, self.broken)
    }

    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.observer.cursor()
    }
}
