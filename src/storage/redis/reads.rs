//! Lookups of sessions in one partition.
//!
//! A lookup is a pipeline of plain reads, which costs Redis a fraction of what a script costs. Each answer is true at
//! some moment between its call and its return, which is all that the contract asks for.

use std::{sync::Arc, time::Duration};

use redis::{Pipeline, RedisError, Value};
use tokio::time::{Instant, sleep};

use super::{
    fault::Fault,
    partition::Partition,
    queue::{self, Limits, Queue},
    registry::{Identity, Registry, session_bytes},
};
use crate::session::SessionKey;

/// The limits of one pipeline: it takes Redis about a millisecond.
const LIMITS: Limits = Limits { sessions: 1024, share: 128, calls: usize::MAX };

/// How long to wait before asking again if the wrong server answered.
const RETRY: Duration = Duration::from_millis(10);

/// The lookups that wait for one partition.
#[derive(Default)]
pub(super) struct Reads(Queue<(), bool>);

type Part = queue::Part<(), bool>;

impl Reads {
    /// Returns which of the sessions exist. By `identity` they belong to this partition.
    pub(super) async fn ask(&self, identity: &Arc<Identity>, sessions: Vec<SessionKey>) -> Result<Vec<bool>, Fault> {
        self.0.ask((), Arc::clone(identity), sessions).await
    }

    /// Sends the waiting lookups, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, number: u32) {
        let partition = Arc::clone(registry.partition(number));
        loop {
            let (identity, batch) = self.0.take(&LIMITS, partition.timeout(), || registry.identity()).await;
            match look(&registry, &partition, &identity, &batch).await {
                Ok(answers) => {
                    let mut answers = answers.into_iter();
                    for part in batch {
                        let count = part.sessions().len();
                        self.0.give(part, answers.by_ref().take(count), false);
                    }
                }
                Err(fault) => batch.into_iter().for_each(|part| part.fail(fault.clone())),
            }
        }
    }
}

/// Looks up all sessions of a batch. Retries within the timeout if it did not reach the right server.
async fn look(
    registry: &Registry,
    partition: &Partition,
    identity: &Arc<Identity>,
    batch: &[Part],
) -> Result<Vec<bool>, Fault> {
    let last_try = Instant::now() + partition.timeout();
    let mut all = Pipeline::with_capacity(1 + LIMITS.sessions);
    all.cmd("HMGET").arg(partition.key("meta")).arg("birth").arg("end");
    for session in batch.iter().flat_map(Part::sessions) {
        let bucket = registry.bucket_of(identity, session);
        all.cmd("HEXISTS").arg(partition.bucket_key(bucket)).arg(&session_bytes(session)[..]);
    }
    loop {
        // Noted before the read: what the tail reads meanwhile may be newer than the answer.
        let read_up_to = partition.read_up_to();
        let fault = match partition.read(&all, last_try).await {
            Ok(answers) => match parse(answers, &identity.birth, partition, read_up_to) {
                Err(Fault::Registry) => registry.rejoin_same(identity).await?,
                Err(fault) => fault,
                answers => return answers,
            },
            Err(fault) => fault,
        };
        if !matches!(fault, Fault::Undone(_)) || Instant::now() + RETRY >= last_try {
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
