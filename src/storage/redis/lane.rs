//! Sends the changes to one partition, one script at a time.
//!
//! A script without an answer may still be executed until it expires. Until then, the lane neither sends another script
//! nor reports the failure. Therefore, a failed call takes no effect after its failure was reported.

use std::{error::Error, mem, sync::Arc};

use redis::RedisError;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until};

use super::{
    fault::Fault,
    lease::lease_number,
    partition::Partition,
    queue::{self, Limits, Queue},
    registry::{Identity, Registry, session_bytes},
    retry::retry,
    script::Call,
};
use crate::session::{LeaseId, SessionKey};

/// The limits of one script. They keep a script to a few milliseconds in Redis. Also, the number of each lease must fit
/// into a byte, and each call has up to two leases.
const LIMITS: Limits = Limits { sessions: 384, share: 64, calls: 127 };

/// A script's answer for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) what: Outcome,
    /// The position of the log at which the outcome is true.
    pub(super) position: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing changed.
    No,
    /// Nothing changed, because the session is under this lease.
    Stays(LeaseId),
    /// Nothing changed, because the session is under this lease, which is closed in this partition and may have ended.
    StaysUnderClosed(LeaseId),
    /// The session was created or destroyed.
    Yes,
    /// The session moved to the call's lease.
    Moved,
    /// The session is under this lease, which is closed or lingers in this partition. The session may be taken only if
    /// the lease has ended or lingers in the whole registry. The script stopped here.
    Closed(LeaseId),
    /// No session can come under the call's lease in this partition. The script stopped here.
    NoLease,
    /// The partition is full. The script stopped here.
    Full,
    /// Redis has no memory left for the session. The script stopped here.
    NoMemory,
}

/// A change of sessions.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create(Option<LeaseId>),
    /// Create them under a lease, but take existing ones only from a certain lease.
    Take(Arc<Taking>),
    Destroy(Option<LeaseId>),
}

#[derive(Clone, Debug)]
pub(super) struct Taking {
    pub(super) lease: LeaseId,
    pub(super) from: Option<LeaseId>,
    /// Leases that have ended or linger, and therefore protect nothing.
    pub(super) powerless: Vec<LeaseId>,
}

impl Outcome {
    /// Parses an outcome. `lease` takes the next lease that the script returned.
    fn read(letter: u8, lease: impl FnOnce() -> Option<LeaseId>) -> Option<Self> {
        match letter {
            b'0' => Some(Self::No),
            b'S' => lease().map(Self::Stays),
            b'Z' => lease().map(Self::StaysUnderClosed),
            b'1' => Some(Self::Yes),
            b'm' => Some(Self::Moved),
            b'E' => lease().map(Self::Closed),
            b'L' => Some(Self::NoLease),
            b'F' => Some(Self::Full),
            b'M' => Some(Self::NoMemory),
            _ => None,
        }
    }

    /// Returns whether the script stopped at this session.
    pub(super) fn is_last(self) -> bool {
        matches!(self, Self::Closed(_) | Self::NoLease | Self::Full | Self::NoMemory)
    }

    /// Returns whether the change was logged.
    fn is_logged(self) -> bool {
        matches!(self, Self::Yes | Self::Moved)
    }
}

impl Change {
    fn letter(&self) -> u8 {
        match self {
            Self::Create(None) => b'c',
            Self::Create(Some(_)) => b'C',
            Self::Take(_) => b'T',
            Self::Destroy(None) => b'd',
            Self::Destroy(Some(_)) => b'D',
        }
    }

    pub(super) fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Create(lease) | Self::Destroy(lease) => *lease,
            Self::Take(taking) => Some(taking.lease),
        }
    }
}

/// The queue of changes for one partition.
#[derive(Default)]
pub(super) struct Lane(Queue<Change, Answer>);

type Part = queue::Part<Change, Answer>;

impl Lane {
    /// Changes sessions, which belong to this partition by `identity`. Returns an answer for each session, or for those
    /// up to the first at which [the script stopped](Outcome::is_last).
    pub(super) async fn ask(
        &self,
        change: Change,
        identity: &Arc<Identity>,
        sessions: Vec<SessionKey>,
    ) -> Result<Vec<Answer>, Fault> {
        self.0.ask(change, Arc::clone(identity), sessions).await
    }

    /// Sends the queued changes until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>, number: u32) {
        let partition = Arc::clone(registry.partition(number));
        let mut is_failing = false;
        loop {
            let (identity, batch) = self.0.take(&LIMITS, partition.timeout(), || registry.identity()).await;
            match apply(&registry, &partition, &identity, &batch).await {
                Ok(answers) => {
                    if mem::replace(&mut is_failing, false) {
                        tracing::info!(partition = number, "Redis accepts changes to a partition again");
                    }
                    self.give(batch, answers);
                }
                Err(fault) => {
                    // Logs only the first of consecutive failures, to avoid flooding the log.
                    if !matches!(fault, Fault::Registry) && !mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            partition = number,
                            error = &fault as &dyn Error,
                            "cannot change a partition in Redis"
                        );
                    }
                    batch.into_iter().for_each(|part| part.fail(fault.clone()));
                }
            }
        }
    }

    fn give(&self, batch: Vec<Part>, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        for part in batch {
            let count = part.sessions().len();
            let mut own: SmallVec<[Answer; 8]> = answers.by_ref().take(count).collect();
            if own.len() < count {
                part.fail(Fault::malformed("a script returned too few answers"));
                continue;
            }
            let last = own.iter().position(|answer| answer.what.is_last());
            own.truncate(last.map_or(count, |last| last + 1));
            self.0.give(part, own, last.is_some());
        }
    }
}

/// Parses a script's answers. `end` is the end of the log after the script.
fn read(letters: &[u8], leases: &[u8], end: u64) -> Option<Vec<Answer>> {
    let mut leases = leases.chunks_exact(8).map(|lease| LeaseId::from_number(lease_number(lease)));
    let outcomes: Option<Vec<Outcome>> =
        letters.iter().map(|letter| Outcome::read(*letter, || leases.next().flatten())).collect();
    let outcomes = outcomes?;
    let mut position = end.checked_sub(outcomes.iter().filter(|what| what.is_logged()).count() as u64)?;
    let answer = |what: Outcome| {
        position += u64::from(what.is_logged());
        Answer { what, position }
    };
    Some(outcomes.into_iter().map(answer).collect())
}

/// Runs a script for the batch. Retries within the timeout if the script was certainly not executed. After this returns
/// an error, the script can no longer be executed.
async fn apply(
    registry: &Registry,
    partition: &Partition,
    identity: &Arc<Identity>,
    batch: &[Part],
) -> Result<Vec<Answer>, Fault> {
    let last_try = Instant::now() + partition.timeout();
    retry(last_try, || async move {
        match try_apply(registry, partition, identity, batch, last_try).await {
            Err(Fault::Registry) => Err(registry.rejoin_same(identity).await?),
            answers => answers,
        }
    })
    .await
}

async fn try_apply(
    registry: &Registry,
    partition: &Partition,
    identity: &Identity,
    batch: &[Part],
    expiry: Instant,
) -> Result<Vec<Answer>, Fault> {
    let link = partition.changing_link(expiry).await?;
    let call = script(registry, partition, identity, batch, expiry);
    match partition.change(&link, &call, expiry).await {
        Ok(answer) => {
            let (time, end, letters, leases): (u64, u64, Vec<u8>, Vec<u8>) =
                redis::from_redis_value(answer).map_err(RedisError::from)?;
            partition.clock.read_from(time, &link);
            partition.note_read_up_to(end);
            read(&letters, &leases, end).ok_or_else(|| Fault::malformed("a script returned an unknown answer"))
        }
        Err(fault) => {
            if matches!(fault, Fault::Unknown(_)) {
                sleep_until(expiry).await;
            }
            Err(fault)
        }
    }
}

fn script(registry: &Registry, partition: &Partition, identity: &Identity, batch: &[Part], expiry: Instant) -> Call {
    let mut leases = Vec::<LeaseId>::new();
    let mut powerless = Vec::new();
    let (mut steps, mut places, mut offsets, mut buckets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut froms = Vec::new();
    let is_plain = batch.iter().all(|part| matches!(part.what(), Change::Create(None)));
    for part in batch {
        let mut place_of = |lease: Option<LeaseId>| {
            lease.map_or(0, |lease| {
                let known = leases.iter().position(|known| *known == lease);
                known.unwrap_or_else(|| {
                    leases.push(lease);
                    leases.len() - 1
                }) as u8
                    + 1
            })
        };
        let place = place_of(part.what().lease());
        let from = match part.what() {
            Change::Take(taking) => {
                powerless.extend(taking.powerless.iter().flat_map(|lease| lease.number().to_be_bytes()));
                place_of(taking.from)
            }
            _ => 0,
        };
        for session in part.sessions() {
            let bucket = registry.bucket_of(identity, session);
            steps.push(part.what().letter());
            steps.extend_from_slice(&session_bytes(session));
            places.push(place);
            froms.push(from);
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
    let call = call.arg(&identity.birth).arg(partition.clock.until(expiry)).arg(partition.read_up_to());
    let call = call.arg(registry.options.retain_events).arg(registry.session_limit()).arg(&registry.new_mark()[..]);
    let call = call.arg(lease_bytes).arg(i32::from(is_plain)).arg(steps).arg(places).arg(offsets);
    call.arg(registry.buckets_a_bit()).arg(froms).arg(powerless)
}
