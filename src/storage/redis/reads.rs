//! Looking for sessions of one partition.
//!
//! While one look is at Redis, calls gather, and the next takes them all: a pipeline of plain reads, which costs Redis a fraction of what a
//! script does. Each answer is true at a moment between its call and its answer, which is all that is asked of it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{Pipeline, RedisError, Value};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};

use super::{
    fault::Fault,
    partition::Partition,
    registry::{Registry, session_bytes},
};
use crate::session::SessionKey;

/// The most sessions of one pipeline: a millisecond of Redis.
const SESSIONS_A_READ: usize = 1024;

/// The most sessions that wait for a partition.
const MAX_QUEUED: usize = 1 << 18;

/// What was not answered by the right server is asked again after this long.
const RETRY: Duration = Duration::from_millis(10);

struct Request {
    sessions: Vec<SessionKey>,
    answers: Vec<bool>,
    /// Since when nothing was done for it.
    waits_since: Instant,
    reply: oneshot::Sender<Result<Vec<bool>, Fault>>,
}

impl Request {
    fn left(&self) -> &[SessionKey] {
        &self.sessions[self.answers.len()..]
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

/// The looks that wait for one partition.
#[derive(Default)]
pub(super) struct Reads {
    queue: Mutex<Queue>,
    added: Notify,
}

/// A request, and how many of its sessions a pipeline takes.
type Part = (Request, usize);

impl Reads {
    /// Tells which of some sessions of this partition exist.
    pub(super) async fn ask(&self, sessions: Vec<SessionKey>) -> Result<Vec<bool>, Fault> {
        let (reply, answers) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.sessions + sessions.len() > MAX_QUEUED {
                return Err(Fault::unsent("too many calls wait for Redis"));
            }
            queue.sessions += sessions.len();
            queue.requests.push_back(Request { sessions, answers: Vec::new(), waits_since: Instant::now(), reply });
        }
        self.added.notify_one();
        // The task ends with the storage alone, whose calls are over then.
        answers.await.unwrap_or_else(|_| Err(Fault::unsent("the storage is closed")))
    }

    /// Sends what waits, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, number: u32) {
        let partition = Arc::clone(registry.partition(number));
        loop {
            let batch = self.take(partition.timeout());
            if batch.is_empty() {
                self.added.notified().await;
                continue;
            }
            match look(&registry, &partition, &batch).await {
                Ok(answers) => self.give(batch, answers),
                Err(fault) => batch.into_iter().for_each(|(request, _)| request.answer(Err(fault.clone()))),
            }
        }
    }

    fn take(&self, timeout: Duration) -> Vec<Part> {
        let mut queue = self.queue.lock();
        let Queue { requests, sessions } = &mut *queue;
        let mut batch = Vec::new();
        let mut room = SESSIONS_A_READ;
        while room > 0 {
            let Some(request) = requests.pop_front() else { break };
            let left = request.left().len();
            *sessions -= left;
            if request.reply.is_closed() {
                continue;
            }
            if request.waits_since.elapsed() >= timeout {
                request.answer(Err(Fault::unsent("Redis did not get to it in time")));
                continue;
            }
            let share = if requests.is_empty() { room } else { room.min(SESSIONS_A_READ / 8) };
            let some = left.min(share);
            room -= some;
            batch.push((request, some));
        }
        batch
    }

    fn give(&self, batch: Vec<Part>, answers: Vec<bool>) {
        let mut answers = answers.into_iter();
        for (mut request, some) in batch {
            request.answers.extend(answers.by_ref().take(some));
            if request.left().is_empty() {
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

/// Asks for all, again while the right server was not reached and there is time.
async fn look(registry: &Registry, partition: &Partition, batch: &[Part]) -> Result<Vec<bool>, Fault> {
    let last_try = Instant::now() + partition.timeout();
    loop {
        let identity = registry.identity();
        let mut all = Pipeline::with_capacity(1 + SESSIONS_A_READ);
        all.cmd("HMGET").arg(partition.key("meta")).arg("birth").arg("end");
        for session in batch.iter().flat_map(|(request, some)| &request.left()[..*some]) {
            let bucket = registry.bucket_of(&identity, session);
            all.cmd("HEXISTS").arg(partition.bucket_key(bucket)).arg(&session_bytes(session)[..]);
        }
        // Taken now: what is read meanwhile may be newer than the answer.
        let read_up_to = partition.read_up_to();
        let fault = match partition.read(&all, last_try).await {
            Ok(answers) => match parse(answers, &identity.birth, partition, read_up_to) {
                Err(Fault::Registry) => match registry.rejoin(Some(&identity)).await {
                    Ok(()) => Fault::Registry,
                    Err(fault) => return Err(fault),
                },
                Err(fault) => fault,
                answers => return answers,
            },
            Err(fault) => fault,
        };
        if !matches!(fault, Fault::Undone(_) | Fault::Registry) || Instant::now() + RETRY >= last_try {
            return Err(fault);
        }
        sleep(RETRY).await;
    }
}

fn parse(answers: Vec<Value>, birth: &str, partition: &Partition, read_up_to: u64) -> Result<Vec<bool>, Fault> {
    let mut answers = answers.into_iter();
    let head = answers.next().ok_or_else(|| Fault::malformed("an answer is missing"))?;
    let (found, end): (Option<String>, Option<u64>) = redis::from_redis_value(head).map_err(RedisError::from)?;
    if found.as_deref() != Some(birth) {
        return Err(Fault::Registry);
    }
    if end.unwrap_or(0) < read_up_to {
        return Err(partition.is_behind());
    }
    answers.map(|answer| Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)).collect()
}
