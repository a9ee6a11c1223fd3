//! The calls that wait for one partition.
//!
//! Batches form by themselves: while Redis works on some calls, others gather, and the next script or pipeline takes
//! some sessions of each. An idle partition adds no delay. A busy one spreads the cost over hundreds of sessions, and a
//! large call does not hold up a small one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{fault::Fault, registry::Identity};
use crate::session::SessionKey;

/// The most sessions that may wait.
const MAX_QUEUED: usize = 1 << 18;

/// How much one script or pipeline takes.
pub(super) struct Limits {
    /// The most sessions.
    pub(super) sessions: usize,
    /// The most sessions of one call while other calls wait.
    pub(super) share: usize,
    /// The most calls.
    pub(super) calls: usize,
}

/// See the [module](self). A call asks for a `T` and gets an `A` for each session.
pub(super) struct Queue<T, A> {
    state: Mutex<State<T, A>>,
    added: Notify,
}

struct State<T, A> {
    requests: VecDeque<Request<T, A>>,
    sessions: usize,
}

struct Request<T, A> {
    what: T,
    /// The registry by which the sessions belong to this partition.
    identity: Arc<Identity>,
    sessions: Vec<SessionKey>,
    /// One for each session that is done.
    answers: Vec<A>,
    /// When something was last done for it, or when it came.
    waits_since: Instant,
    reply: oneshot::Sender<Result<Vec<A>, Fault>>,
}

/// Some sessions of a call.
pub(super) struct Part<T, A> {
    request: Request<T, A>,
    count: usize,
}

impl<T, A> Request<T, A> {
    fn left(&self) -> &[SessionKey] {
        &self.sessions[self.answers.len()..]
    }

    fn answer(self, outcome: Result<(), Fault>) {
        let Self { reply, answers, .. } = self;
        // The caller may have left.
        drop(reply.send(outcome.map(|()| answers)));
    }
}

impl<T, A> Part<T, A> {
    pub(super) fn what(&self) -> &T {
        &self.request.what
    }

    pub(super) fn sessions(&self) -> &[SessionKey] {
        &self.request.left()[..self.count]
    }

    /// Makes the call fail.
    pub(super) fn fail(self, fault: Fault) {
        self.request.answer(Err(fault));
    }
}

impl<T, A> Default for Queue<T, A> {
    fn default() -> Self {
        Self { state: Mutex::new(State { requests: VecDeque::new(), sessions: 0 }), added: Notify::new() }
    }
}

impl<T, A> Queue<T, A> {
    /// Waits for the answers for sessions that belong to this partition by `identity`. Returns [`Fault::Registry`] if
    /// the registry was replaced meanwhile: they may belong to another partition now.
    pub(super) async fn ask(
        &self,
        what: T,
        identity: Arc<Identity>,
        sessions: Vec<SessionKey>,
    ) -> Result<Vec<A>, Fault> {
        let (reply, answers) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.sessions + sessions.len() > MAX_QUEUED {
                return Err(Fault::unsent("too many calls wait for Redis"));
            }
            state.sessions += sessions.len();
            let waits_since = Instant::now();
            state.requests.push_back(Request { what, identity, sessions, answers: Vec::new(), waits_since, reply });
        }
        self.added.notify_one();
        // The task that answers ends with the storage, when no call waits any more.
        answers.await.unwrap_or_else(|_| Err(Fault::unsent("the storage is closed")))
    }

    /// Waits for calls, and takes some sessions of each in the order in which they came. `identity` returns the current
    /// registry. Calls that have waited for `timeout` fail.
    pub(super) async fn take(
        &self,
        limits: &Limits,
        timeout: Duration,
        identity: impl Fn() -> Arc<Identity>,
    ) -> (Arc<Identity>, Vec<Part<T, A>>) {
        loop {
            let identity = identity();
            let parts = self.try_take(limits, timeout, &identity);
            if !parts.is_empty() {
                return (identity, parts);
            }
            self.added.notified().await;
        }
    }

    fn try_take(&self, limits: &Limits, timeout: Duration, identity: &Identity) -> Vec<Part<T, A>> {
        let mut state = self.state.lock();
        let State { requests, sessions } = &mut *state;
        let mut parts = Vec::new();
        let mut room = limits.sessions;
        while room > 0 && parts.len() < limits.calls {
            let Some(request) = requests.pop_front() else { break };
            let left = request.left().len();
            *sessions -= left;
            if request.reply.is_closed() {
                continue;
            }
            if !request.identity.has_same_buckets(identity) {
                request.answer(Err(Fault::Registry));
                continue;
            }
            // If it were sent now, it could take another timeout.
            if request.waits_since.elapsed() >= timeout {
                request.answer(Err(Fault::unsent("the call timed out while it waited for its turn")));
                continue;
            }
            let share = if requests.is_empty() { room } else { room.min(limits.share) };
            let count = left.min(share);
            room -= count;
            parts.push(Part { request, count });
        }
        // The rest of the room goes to calls that have more.
        for part in &mut parts {
            let more = room.min(part.request.left().len() - part.count);
            part.count += more;
            room -= more;
        }
        parts
    }

    /// Gives a call the answers for a part: one for each session or, if `is_over`, those up to the one that ends the
    /// call. If the call has more sessions, it goes to the end of the queue.
    pub(super) fn give(&self, part: Part<T, A>, answers: impl IntoIterator<Item = A>, is_over: bool) {
        let mut request = part.request;
        request.answers.extend(answers);
        if is_over || request.left().is_empty() {
            return request.answer(Ok(()));
        }
        request.waits_since = Instant::now();
        let mut state = self.state.lock();
        state.sessions += request.left().len();
        state.requests.push_back(request);
    }
}
