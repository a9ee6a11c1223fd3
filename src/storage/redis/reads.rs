//! Reads the sessions of one partition: whether they exist, and which leases they are under.
//!
//! A read is a pipeline of plain commands, which costs Redis a third to half of what a script costs. Each answer is
//! true at some moment between the call and its return, which is all that the contract requires.

use std::sync::Arc;

use redis::{Pipeline, RedisError, Value};
use tokio::time::Instant;

use super::{
    fault::Fault,
    lookup::Attached,
    partition::Partition,
    queue::{self, Limits, Queue},
    registry::{Identity, Registry, session_bytes},
    retry::retry,
};
use crate::session::{LeaseId, SessionKey};

/// The limits of one pipeline, which takes Redis about a millisecond.
const LIMITS: Limits = Limits { sessions: 1024, share: 128, calls: usize::MAX };

/// What a call asks about its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Existence,
    Leases,
}

/// What a read found out about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    /// It exists, and is under no lease or its lease was not asked for.
    Exists,
    /// It is under this lease, which had not ended.
    Under(LeaseId),
    /// It is under the lease with this slot. This replica does not know yet which lease that is, or whether it has
    /// ended.
    Slot(u64),
}

impl Found {
    pub(super) fn exists(self) -> bool {
        self != Self::Missing
    }
}

/// The queue of reads for one partition.
#[derive(Default)]
pub(super) struct Reads {
    queue: Queue<What, Found>,
    pub(super) attached: Attached,
}

type Part = queue::Part<What, Found>;

impl Reads {
    /// Reads sessions, which belong to this partition by `identity`.
    pub(super) async fn ask(
        &self,
        what: What,
        identity: &Arc<Identity>,
        sessions: Vec<SessionKey>,
    ) -> Result<Vec<Found>, Fault> {
        self.queue.ask(what, Arc::clone(identity), sessions).await
    }

    /// Sends the queued reads until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, number: u32) {
        let partition = Arc::clone(registry.partition(number));
        loop {
            let (identity, batch) = self.queue.take(&LIMITS, partition.timeout(), || registry.identity()).await;
            match self.read(&registry, &partition, &identity, &batch).await {
                Ok(answers) => {
                    let mut answers = answers.into_iter();
                    for part in batch {
                        let count = part.sessions().len();
                        self.queue.give(part, answers.by_ref().take(count), false);
                    }
                }
                Err(fault) => batch.into_iter().for_each(|part| part.fail(fault.clone())),
            }
        }
    }

    /// Reads all sessions of a batch. Retries within the timeout if the pipeline did not reach the right server.
    async fn read(
        &self,
        registry: &Registry,
        partition: &Partition,
        identity: &Arc<Identity>,
        batch: &[Part],
    ) -> Result<Vec<Found>, Fault> {
        let last_try = Instant::now() + partition.timeout();
        let mut all = Pipeline::with_capacity(2 + LIMITS.sessions);
        all.cmd("HMGET").arg(partition.key("meta")).arg("birth").arg("end");
        for part in batch {
            let command = if *part.what() == What::Leases { "HGET" } else { "HEXISTS" };
            for session in part.sessions() {
                let bucket = registry.bucket_of(identity, session);
                all.cmd(command).arg(partition.bucket_key(bucket)).arg(&session_bytes(session)[..]);
            }
        }
        // Read after the sessions: a lease that is not closed by now was not closed when its session was read.
        let asks_leases = batch.iter().any(|part| *part.what() == What::Leases);
        if asks_leases {
            all.cmd("HGET").arg(partition.key("meta")).arg("closing");
        }
        let all = &all;
        retry(last_try, || async move {
            // Taken before the read, because the tail may meanwhile read changes that are newer than the answer.
            let read_up_to = partition.read_up_to();
            let answers = partition.read(all, last_try).await?;
            match self.parse(answers, asks_leases, &identity.birth, partition, read_up_to) {
                Err(Fault::Registry) => Err(registry.rejoin_same(identity).await?),
                answers => answers,
            }
        })
        .await
    }

    fn parse(
        &self,
        mut answers: Vec<Value>,
        asks_leases: bool,
        birth: &str,
        partition: &Partition,
        read_up_to: u64,
    ) -> Result<Vec<Found>, Fault> {
        let closing = if asks_leases { answers.pop().unwrap_or(Value::Nil) } else { Value::Nil };
        let closing: Option<String> = redis::from_redis_value(closing).map_err(RedisError::from)?;
        let closing = closing.unwrap_or_default();
        let mut answers = answers.into_iter();
        let head = answers.next().ok_or_else(|| Fault::malformed("an answer is missing"))?;
        let (found, end): (Option<String>, Option<u64>) = redis::from_redis_value(head).map_err(RedisError::from)?;
        if found.as_deref() != Some(birth) {
            return Err(Fault::Registry);
        }
        if end.unwrap_or(0) < read_up_to {
            return Err(partition.leave_stale_server());
        }
        let leases = self.attached.leases(birth, &closing);
        let found = |answer| match answer {
            Value::Int(0) | Value::Nil => Ok(Found::Missing),
            Value::Int(_) => Ok(Found::Exists),
            Value::BulkString(slot) if slot.is_empty() => Ok(Found::Exists),
            Value::BulkString(slot) => {
                let slot = std::str::from_utf8(&slot).ok().and_then(|slot| slot.parse().ok()).unwrap_or(0);
                let lease = leases.as_ref().and_then(|leases| leases.get(&slot).copied());
                Ok(lease.map_or(Found::Slot(slot), Found::Under))
            }
            _ => Err(Fault::malformed("a bucket is not a hash")),
        };
        answers.map(found).collect()
    }
}
