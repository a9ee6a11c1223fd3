//! The way of changes to one partition.
//!
//! Batches form by themselves: while a script runs, calls gather, and the next script takes some of each. An idle lane adds no delay; a busy
//! one spreads the cost of a script over hundreds of sessions, and a call with many sessions does not hold up one with few.
//!
//! Scripts of a lane run one after the other. A script that is not answered may still run until its time is over, so until then the lane sends
//! nothing more and answers nobody: a call that failed has no effect after that.

use std::{collections::VecDeque, error::Error, mem, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::RedisError;
use smallvec::SmallVec;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until},
};

use super::{
    fault::Fault,
    partition::Partition,
    registry::{Identity, Registry, session_bytes},
    script::Call,
};
use crate::session::{LeaseId, SessionKey};

/// The most sessions of one script: a few milliseconds of Redis.
const STEPS_A_SCRIPT: usize = 512;

/// The most sessions of one call in a script while other calls wait.
const FAIR_SHARE: usize = 64;

/// The most leases of one script: a step names one by a byte.
const LEASES_A_SCRIPT: usize = 255;

/// The most sessions that wait for a partition.
const MAX_QUEUED: usize = 1 << 18;

/// A script that was certainly not run is sent again after this long.
const RETRY: Duration = Duration::from_millis(10);

/// What a step of a script answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It changed nothing.
    No,
    /// It changed something.
    Yes,
    /// The lease is not attached to this partition. Nothing after this was tried.
    NoLease,
    /// The partition may hold no more. Nothing after this was tried.
    Full,
    /// Redis has no memory for it. Nothing after this was tried.
    NoMemory,
}

/// What is to be done with sessions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Create(Option<LeaseId>),
    Destroy(Option<LeaseId>),
}

impl Answer {
    fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'0' => Some(Self::No),
            b'1' => Some(Self::Yes),
            b'L' => Some(Self::NoLease),
            b'F' => Some(Self::Full),
            b'M' => Some(Self::NoMemory),
            _ => None,
        }
    }

    /// Whether nothing after it was tried.
    pub(super) fn is_last(self) -> bool {
        !matches!(self, Self::No | Self::Yes)
    }
}

impl Change {
    fn letter(self) -> u8 {
        match self {
            Self::Create(None) => b'c',
            Self::Create(Some(_)) => b'C',
            Self::Destroy(None) => b'd',
            Self::Destroy(Some(_)) => b'D',
        }
    }

    pub(super) fn lease(self) -> Option<LeaseId> {
        match self {
            Self::Create(lease) | Self::Destroy(lease) => lease,
        }
    }
}

struct Request {
    change: Change,
    sessions: Vec<SessionKey>,
    /// One for each session that is done.
    answers: Vec<Answer>,
    /// Since when nothing was done for it.
    waits_since: Instant,
    reply: oneshot::Sender<Result<Vec<Answer>, Fault>>,
}

impl Request {
    fn left(&self) -> &[SessionKey] {
        &self.sessions[self.answers.len()..]
    }

    fn is_done(&self) -> bool {
        self.left().is_empty() || self.answers.last().is_some_and(|answer| answer.is_last())
    }

    fn answer(self, outcome: Result<(), Fault>) {
        let Self { reply, answers, .. } = self;
        // Nobody may wait for it any more.
        drop(reply.send(outcome.map(|()| answers)));
    }
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    sessions: usize,
}

/// The changes that wait for one partition.
#[derive(Default)]
pub(super) struct Lane {
    queue: Mutex<Queue>,
    added: Notify,
}

/// Some steps of a request that a script takes.
struct Part {
    request: Request,
    steps: usize,
}

impl Lane {
    /// Has sessions of this partition created or destroyed. Gives an answer for each, or for those up to the first that
    /// [ends it](Answer::is_last).
    pub(super) async fn ask(&self, change: Change, sessions: Vec<SessionKey>) -> Result<Vec<Answer>, Fault> {
        let (reply, answers) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.sessions + sessions.len() > MAX_QUEUED {
                return Err(Fault::unsent("too many changes wait for Redis"));
            }
            queue.sessions += sessions.len();
            let waits_since = Instant::now();
            queue.requests.push_back(Request { change, sessions, answers: Vec::new(), waits_since, reply });
        }
        self.added.notify_one();
        // The lane's task ends with the storage alone, whose calls are over then.
        answers.await.unwrap_or_else(|_| Err(Fault::unsent("the storage is closed")))
    }

    /// Sends what waits, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, number: u32) {
        let partition = Arc::clone(registry.partition(number));
        let mut is_failing = false;
        loop {
            let mut batch = self.take(partition.timeout());
            if batch.is_empty() {
                self.added.notified().await;
                continue;
            }
            match apply(&registry, &partition, &batch).await {
                Ok(answers) => {
                    if mem::replace(&mut is_failing, false) {
                        tracing::info!(partition = number, "changes reach Redis again");
                    }
                    self.give(batch, &answers);
                }
                Err(fault) => {
                    // A line for each call would be a flood.
                    if !mem::replace(&mut is_failing, true) {
                        tracing::warn!(partition = number, error = &fault as &dyn Error, "changes do not reach Redis");
                    }
                    batch.drain(..).for_each(|part| part.request.answer(Err(fault.clone())));
                }
            }
        }
    }

    /// Takes what fits one script: some sessions of each request, those that came first first.
    fn take(&self, timeout: Duration) -> Vec<Part> {
        let mut queue = self.queue.lock();
        let Queue { requests, sessions } = &mut *queue;
        // Those who have waited this long are told so while there is time: a script needs some.
        let is_late = |request: &Request| request.waits_since.elapsed() >= timeout;
        let mut batch = Vec::new();
        let mut room = STEPS_A_SCRIPT;
        while room > 0 && batch.len() < LEASES_A_SCRIPT {
            let Some(request) = requests.pop_front() else { break };
            let left = request.left().len();
            *sessions -= left;
            if request.reply.is_closed() {
                continue;
            }
            if is_late(&request) {
                request.answer(Err(Fault::unsent("Redis did not get to it in time")));
                continue;
            }
            let share = if requests.is_empty() { room } else { room.min(FAIR_SHARE) };
            let steps = left.min(share);
            room -= steps;
            batch.push(Part { request, steps });
        }
        // What others left is for those who have more.
        for part in &mut batch {
            let more = room.min(part.request.left().len() - part.steps);
            part.steps += more;
            room -= more;
        }
        batch
    }

    /// Gives answers to those who asked. Who has more to ask comes last from now on.
    fn give(&self, batch: Vec<Part>, mut answers: &[u8]) {
        for Part { mut request, steps } in batch {
            let (own, rest) = answers.split_at(steps.min(answers.len()));
            answers = rest;
            let parsed: Option<SmallVec<[Answer; 8]>> = own.iter().map(|letter| Answer::from_letter(*letter)).collect();
            match parsed {
                Some(parsed) if parsed.len() == steps => {
                    let end = parsed.iter().position(|answer| answer.is_last()).map_or(steps, |last| last + 1);
                    request.answers.extend(&parsed[..end]);
                }
                _ => {
                    request.answer(Err(Fault::malformed("a script gave too few answers")));
                    continue;
                }
            }
            if request.is_done() {
                request.answer(Ok(()));
                continue;
            }
            request.waits_since = Instant::now();
            let mut queue = self.queue.lock();
            queue.sessions += request.left().len();
            queue.requests.push_back(request);
        }
    }
}

/// Runs a script for the batch, again while it was certainly not run and there is time. When this fails, the script can no longer run.
async fn apply(registry: &Registry, partition: &Partition, batch: &[Part]) -> Result<Vec<u8>, Fault> {
    let last_try = Instant::now() + partition.timeout();
    loop {
        let identity = registry.identity();
        let fault = match try_apply(registry, partition, &identity, batch, last_try).await {
            Ok(answers) => return Ok(answers),
            Err(Fault::Registry) => match registry.rejoin(Some(&identity)).await {
                Ok(()) => Fault::Registry,
                Err(fault) => return Err(fault),
            },
            Err(fault) => fault,
        };
        if !matches!(fault, Fault::Undone(_) | Fault::Registry) || Instant::now() + RETRY >= last_try {
            return Err(fault);
        }
        sleep(RETRY).await;
    }
}

async fn try_apply(
    registry: &Registry,
    partition: &Partition,
    identity: &Identity,
    batch: &[Part],
    over: Instant,
) -> Result<Vec<u8>, Fault> {
    let link = partition.changing_link(over).await?;
    let call = script(registry, partition, identity, batch, over);
    match partition.change(&link, &call, over).await {
        Ok(answer) => {
            let (time, end, answers): (u64, u64, Vec<u8>) =
                redis::from_redis_value(answer).map_err(RedisError::from)?;
            partition.clock.read_from(time, &link);
            partition.has_read_up_to(end);
            Ok(answers)
        }
        Err(fault) => {
            if matches!(fault, Fault::Unknown(_)) {
                sleep_until(over).await;
            }
            Err(fault)
        }
    }
}

fn script(registry: &Registry, partition: &Partition, identity: &Identity, batch: &[Part], over: Instant) -> Call {
    let mut leases = Vec::<LeaseId>::new();
    let (mut letters, mut sessions, mut places, mut offsets, mut buckets) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Part { request, steps } in batch {
        let place = request.change.lease().map_or(0, |lease| {
            let known = leases.iter().position(|known| *known == lease);
            known.unwrap_or_else(|| {
                leases.push(lease);
                leases.len() - 1
            }) as u8
                + 1
        });
        for session in &request.left()[..*steps] {
            let bucket = registry.bucket_of(identity, session);
            letters.push(request.change.letter());
            sessions.extend_from_slice(&session_bytes(session));
            places.push(place);
            offsets.extend_from_slice(&registry.offset_of(bucket).to_be_bytes());
            buckets.push(bucket);
        }
    }
    let lease_bytes: Vec<u8> = leases.iter().flat_map(|lease| lease.number().to_be_bytes()).collect();
    let mut call = registry.scripts.apply.call(5 + leases.len() + buckets.len());
    for name in ["meta", "log", "attached", "slots", "held"] {
        call = call.arg(partition.key(name));
    }
    for lease in &leases {
        call = call.arg(partition.lease_key(&lease.number().to_be_bytes()));
    }
    for bucket in buckets {
        call = call.arg(partition.bucket_key(bucket));
    }
    let call = call.arg(&identity.birth).arg(partition.clock.until(over)).arg(partition.read_up_to());
    let call = call.arg(registry.options.retain_events).arg(registry.session_limit()).arg(&registry.new_mark()[..]);
    call.arg(lease_bytes).arg(letters).arg(sessions).arg(places).arg(offsets).arg(registry.buckets_a_bit())
}
