//! Queues the calls for one partition, and batches them.
//!
//! While Redis executes one script or pipeline, calls accumulate, and the next script or pipeline takes some sessions
//! of each. Batching adds no delay to an idle partition. In a busy one, hundreds of sessions share the cost of a
//! script, and a large call does not hold up small ones.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{fault::Fault, registry::Identity};
use crate::session::SessionKey;

/// The maximum number of queued sessions.
const MAX_QUEUED: usize = 1 << 18;

/// The maximum size of one script or pipeline.
pub(super) struct Limits {
    /// The maximum number of sessions.
    pub(super) sessions: usize,
    /// The maximum number of sessions of one call while other calls are waiting.
    pub(super) share: usize,
    /// The maximum number of calls.
    pub(super) calls: usize,
}

/// See the [module](self). A call requests a `T` and gets an `A` for each session.
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
    /// The answers for the sessions that are done, which are the first ones.
    answers: Vec<A>,
    /// When some of its sessions were last done or, before that, when it was queued.
    waits_since: Instant,
    reply: oneshot::Sender<Result<Vec<A>, Fault>>,
}

/// Some sessions of a call, which one script or pipeline takes.
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
        // Fails if the caller's future was dropped.
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

    /// Fails the call.
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
    /// Queues a call, and waits for its answers. By `identity`, the sessions belong to this partition. If the registry
    /// is replaced meanwhile, they may belong to another partition, and this returns [`Fault::Registry`].
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
                return Err(Fault::unsent("too many calls are waiting for Redis"));
            }
            state.sessions += sessions.len();
            let waits_since = Instant::now();
            state.requests.push_back(Request { what, identity, sessions, answers: Vec::new(), waits_since, reply });
        }
        self.added.notify_one();
        // The task that sends the answers ends only when the storage is dropped.
        answers.await.unwrap_or_else(|_| Err(Fault::unsent("the storage is closed")))
    }

    /// Takes the next batch: some sessions of each call, in queue order. Waits until there is a call. `identity`
    /// returns the current registry. Calls that have waited for `timeout` fail.
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
            // Sent now, the call might take another `timeout`.
            if request.waits_since.elapsed() >= timeout {
                request.answer(Err(Fault::unsent("the call timed out in the queue")));
                continue;
            }
            let share = if requests.is_empty() { room } else { room.min(limits.share) };
            let count = left.min(share);
            room -= count;
            parts.push(Part { request, count });
        }
        // Calls that have more sessions share the remaining room.
        for part in &mut parts {
            let more = room.min(part.request.left().len() - part.count);
            part.count += more;
            room -= more;
        }
        parts
    }

    /// Passes the answers for a part to its call: one for each session or, if `is_over`, those up to the answer that
    /// ends the call. If the call has more sessions, it is queued again at the end.
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
