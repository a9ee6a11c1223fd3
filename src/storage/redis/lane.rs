//! The way of calls about sessions to one partition.
//!
//! Batches form by themselves: while a script runs, calls gather, and the next script takes them all. An idle lane adds no
//! delay; a busy one spreads the cost of a script over hundreds of sessions. Scripts of a lane run one after the other, so
//! a batch keeps its order, whatever a cluster does to one that it has to send again.

use std::{collections::VecDeque, error::Error, sync::Arc};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::{
    fault::Fault,
    registry::{Identity, Registry, session_bytes},
    script::Call,
};
use crate::session::{LeaseId, SessionKey};

/// The most sessions of one script: a millisecond of Redis.
const STEPS_A_SCRIPT: usize = 512;

/// The most leases of one script: a step names one by a byte.
const LEASES_A_SCRIPT: usize = 255;

/// The most sessions that wait for a partition.
const MAX_WAITING: usize = 1 << 18;

/// What a step of a script answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It changed nothing, or the session is not there.
    No,
    /// It changed something, or the session is there.
    Yes,
    /// The lease is not known in this partition. Nothing after this was tried.
    NoLease,
    /// The partition may hold no more. Nothing after this was tried.
    Full,
}

/// What is to be done with sessions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Create(Option<LeaseId>),
    Has,
    Destroy(Option<LeaseId>),
}

impl Answer {
    fn from_letter(letter: u8) -> Self {
        match letter {
            b'1' => Self::Yes,
            b'L' => Self::NoLease,
            b'F' => Self::Full,
            _ => Self::No,
        }
    }
}

impl Action {
    fn letter(self) -> u8 {
        match self {
            Self::Create(None) => b'c',
            Self::Create(Some(_)) => b'C',
            Self::Has => b'h',
            Self::Destroy(None) => b'd',
            Self::Destroy(Some(_)) => b'D',
        }
    }

    fn lease(self) -> Option<LeaseId> {
        match self {
            Self::Create(lease) | Self::Destroy(lease) => lease,
            Self::Has => None,
        }
    }
}

struct Request {
    action: Action,
    sessions: Vec<SessionKey>,
    /// One for each session that is done.
    answers: Vec<Answer>,
    reply: oneshot::Sender<Result<Vec<Answer>, Fault>>,
}

impl Request {
    fn left(&self) -> &[SessionKey] {
        &self.sessions[self.answers.len()..]
    }
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    sessions: usize,
}

/// The calls that wait for one partition.
#[derive(Default)]
pub(super) struct Lane {
    waiting: Mutex<Waiting>,
    added: Notify,
}

impl Lane {
    /// Has sessions of this partition created, destroyed or looked for. Gives an answer for each, or for those up to the first
    /// that had no lease or no room.
    pub(super) async fn ask(&self, action: Action, sessions: Vec<SessionKey>) -> Result<Vec<Answer>, Fault> {
        let (reply, answers) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.sessions + sessions.len() > MAX_WAITING {
                let what = "too many calls wait for Redis";
                return Err(redis::RedisError::from((redis::ErrorKind::Client, what)).into());
            }
            waiting.sessions += sessions.len();
            waiting.requests.push_back(Request { action, sessions, answers: Vec::new(), reply });
        }
        self.added.notify_one();
        // The lane's task ends with the storage alone, whose calls are over then.
        answers.await.unwrap_or(Err(Fault::Registry))
    }

    /// Sends what waits, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, partition: u32) {
        let mut is_failing = false;
        loop {
            let mut batch = self.take();
            if batch.is_empty() {
                self.added.notified().await;
                continue;
            }
            let reads_only = batch.iter().all(|request| matches!(request.action, Action::Has));
            let steps = plan(&batch);
            let outcome: Result<Vec<u8>, Fault> = registry
                .with_identity(|identity| {
                    let call = script(&registry, &identity, partition, &batch, &steps);
                    let link = &registry.link;
                    async move { if reads_only { link.run(call).await } else { link.run_durably(call).await } }
                })
                .await;
            match outcome {
                Ok(answers) => {
                    is_failing = false;
                    self.give(batch, &steps, &answers);
                }
                Err(fault) => {
                    // A line for each call would be a flood.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(partition, error = &fault as &dyn Error, "calls to Redis fail");
                    }
                    batch.drain(..).for_each(|request| drop(request.reply.send(Err(fault.clone()))));
                }
            }
        }
    }

    /// Takes what fits one script.
    fn take(&self) -> Vec<Request> {
        let mut waiting = self.waiting.lock();
        let (mut batch, mut sessions) = (Vec::new(), 0);
        while sessions < STEPS_A_SCRIPT && batch.len() < LEASES_A_SCRIPT {
            let Some(request) = waiting.requests.pop_front() else { break };
            let left = request.left().len();
            waiting.sessions -= left;
            // Nobody waits for it any more.
            if !request.reply.is_closed() {
                sessions += left;
                batch.push(request);
            }
        }
        batch
    }

    /// Gives answers to those who asked; who has more to ask comes first in the next script.
    fn give(&self, batch: Vec<Request>, steps: &[usize], mut answers: &[u8]) {
        let mut unfinished = None;
        for (mut request, steps) in batch.into_iter().zip(steps) {
            let (own, rest) = answers.split_at((*steps).min(answers.len()));
            answers = rest;
            let is_done = |answer: Option<&Answer>| matches!(answer, Some(Answer::NoLease | Answer::Full));
            for letter in own {
                request.answers.push(Answer::from_letter(*letter));
                if is_done(request.answers.last()) {
                    break;
                }
            }
            if request.answers.len() == request.sessions.len() || is_done(request.answers.last()) {
                drop(request.reply.send(Ok(request.answers)));
            } else if own.len() < *steps {
                drop(request.reply.send(Err(Fault::Refused("with too few answers".to_owned()))));
            } else {
                unfinished = Some(request);
            }
        }
        if let Some(request) = unfinished {
            let mut waiting = self.waiting.lock();
            waiting.sessions += request.left().len();
            waiting.requests.push_front(request);
        }
    }
}

/// How many sessions of each request go into a script; only the last may have more.
fn plan(batch: &[Request]) -> Vec<usize> {
    let mut room = STEPS_A_SCRIPT;
    let mut take = |request: &Request| {
        let some = room.min(request.left().len());
        room -= some;
        some
    };
    batch.iter().map(&mut take).collect()
}

fn script<'a>(
    registry: &'a Registry,
    identity: &Identity,
    partition: u32,
    batch: &[Request],
    steps: &[usize],
) -> Call<'a> {
    let (mut leases, mut buckets, mut lines) = (Vec::<LeaseId>::new(), Vec::new(), Vec::new());
    for (request, steps) in batch.iter().zip(steps) {
        let place = request.action.lease().map(|lease| {
            leases.iter().position(|known| *known == lease).unwrap_or_else(|| {
                leases.push(lease);
                leases.len() - 1
            })
        });
        for session in &request.left()[..*steps] {
            let bucket = registry.bucket_of(identity, session);
            let mut line = SmallVec::<[u8; 24]>::new();
            line.push(request.action.letter());
            line.extend_from_slice(&session_bytes(session));
            if let Some(place) = place {
                line.push(place as u8 + 1);
                line.extend_from_slice(registry.lease_bit(bucket).to_string().as_bytes());
            }
            buckets.push(bucket);
            lines.push(line);
        }
    }
    let mut call = registry.call(&registry.scripts.apply, partition, 3 + leases.len() + buckets.len());
    call = call.arg(registry.key(partition, "log")).arg(registry.key(partition, "attached"));
    for lease in &leases {
        call = call.arg(registry.lease_key(partition, &lease.number().to_be_bytes()));
    }
    for bucket in buckets {
        call = call.arg(registry.bucket_key(bucket));
    }
    call = call.arg(&identity.id).arg(fastrand::u32(..)).arg(registry.options.retain_events);
    call = call.arg(registry.session_limit()).arg(leases.len());
    for lease in &leases {
        call = call.arg(&lease.number().to_be_bytes());
    }
    lines.iter().fold(call, |call, line| call.arg(&line[..]))
}
