//! Expires leases. Several times a second, every replica looks for leases that are due, and for leases whose end or
//! sweep another replica has abandoned.
//!
//! Leases that are due together are closed and swept together. A large lease is swept separately, so that small ones do
//! not wait for it.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use redis::{FromRedisValue, ParsingError, Value};
use tokio::time::{Instant, sleep};

use super::{ending::Ending, fault::Fault, partition::DURABLE, registry::Registry};
use crate::random::random_u64;

/// The duration of a replica's claim on a lease that it ends or sweeps. If the replica does not renew its claim,
/// another replica takes over.
pub(super) const CLAIM: Duration = Duration::from_secs(2);

/// The maximum interval between two looks of a replica.
const LOOK: Duration = Duration::from_millis(250);

/// If no replica has looked for this long, there was an outage: gateways could not keep their leases alive either.
const OUTAGE: Duration = Duration::from_secs(1);

/// The time that gateways get to reconnect, in addition to the length of the outage: gRPC's backoff grows with it.
const BEYOND_OUTAGE: Duration = Duration::from_secs(20);

/// The random part of the interval, so that replicas do not all look at the same moment.
const JITTER: Duration = Duration::from_millis(20);

/// The maximum number of leases that one look marks.
const LEASES_A_LOOK: usize = 512;

/// A lease with more sessions than this is swept separately.
const LARGE: u64 = 1000;

/// How many batches of small leases, and how many large leases, are swept concurrently.
const BATCHES_AT_ONCE: usize = 4;
const LARGE_AT_ONCE: usize = 4;

/// What `lease_look.lua` returns.
struct Look {
    number: u64,
    outage: Option<Outage>,
    /// The time until the next lease is due.
    next: Option<Duration>,
    /// The number of leases that were due.
    due: usize,
    endings: Vec<Ending>,
}

/// The length of an outage: the time during which no replica looked.
enum Outage {
    Known(Duration),
    Unknown,
}

impl FromRedisValue for Look {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let mut parts = redis::from_redis_value::<Vec<Value>>(value)?.into_iter();
        let mut next = || redis::from_redis_value::<i64>(parts.next().unwrap_or(Value::Nil));
        let (number, outage, wait, due) = (next()?, next()?, next()?, next()?);
        let ms = |ms: i64| u64::try_from(ms).ok().map(Duration::from_millis);
        let given = redis::from_redis_value::<Vec<Vec<u8>>>(Value::Array(parts.collect()))?;
        Ok(Self {
            number: number.unsigned_abs(),
            outage: match outage {
                -1 => None,
                length => Some(ms(length).map_or(Outage::Unknown, Outage::Known)),
            },
            next: ms(wait),
            due: due.unsigned_abs() as usize,
            endings: given.chunks_exact(2).map(|pair| Ending::parse(pair[0].clone(), &pair[1])).collect(),
        })
    }
}

/// This replica's latest look.
#[derive(Default)]
pub(super) struct LastLook(Mutex<Option<OwnLook>>);

#[derive(Clone, Copy)]
struct OwnLook {
    number: u64,
    sent: Instant,
    answered: Instant,
}

impl LastLook {
    fn get(&self) -> Option<OwnLook> {
        *self.0.lock()
    }
}

impl Registry {
    /// Ends and sweeps leases as they expire, and those that other replicas have abandoned. Returns only after a fault.
    pub(super) async fn expire_leases(&self) -> Result<Infallible, Fault> {
        let (mut batches, mut large) = (FuturesUnordered::new(), FuturesUnordered::new());
        loop {
            let most = if batches.len() < BATCHES_AT_ONCE { LEASES_A_LOOK } else { 0 };
            let room = if most > 0 { LARGE_AT_ONCE.saturating_sub(large.len()) } else { 0 };
            let began = Instant::now();
            let (endings, marked, next) = self.look(most, room).await?;
            if !endings.is_empty() {
                batches.push(self.end_batch(endings));
            }
            // Counted from the start of the look. If looks are too far apart, the leases' clock falls behind.
            let left = LOOK.saturating_sub(began.elapsed());
            let pause = if most > 0 && marked == most { Duration::ZERO } else { next.min(left) };
            tokio::select! {
                Some(left) = batches.next() => {
                    for ending in left? {
                        large.push(self.sweep_alone(ending));
                    }
                }
                Some(swept) = large.next() => swept?,
                () = sleep(pause + JITTER.mul_f64(fastrand::f64())) => {}
            }
        }
    }

    /// Advances the leases' clock until the future is dropped, even while `expire_leases` does not run. The clock may
    /// stop only while no lease can be kept alive.
    pub(super) async fn move_clock(self: Arc<Self>) {
        loop {
            sleep(LOOK + JITTER.mul_f64(fastrand::f64())).await;
            let is_due = self.last_look.get().is_none_or(|own| own.sent.elapsed() >= LOOK);
            if is_due && let Err(fault) = self.look(0, 0).await {
                tracing::debug!(error = &fault as &dyn Error, "cannot advance the leases' clock");
            }
        }
    }

    /// Ends leases, and sweeps the small ones. Returns the large ones, which must still be swept.
    async fn end_batch(&self, endings: Vec<Ending>) -> Result<Vec<Ending>, Fault> {
        let ended = self.end(endings).await?;
        let (large, small): (Vec<_>, Vec<_>) = ended.into_iter().partition(|ending| ending.sessions > LARGE);
        if !small.is_empty() {
            self.sweep(&small).await?;
        }
        Ok(large)
    }

    async fn sweep_alone(&self, ending: Ending) -> Result<(), Fault> {
        self.sweep(&[ending]).await.map(drop)
    }

    /// Advances the leases' clock, and marks up to `most` leases that are due. Returns these leases and up to `room`
    /// abandoned ones to end or sweep, the number of leases that were due, and the time until the next look.
    async fn look(&self, most: usize, room: usize) -> Result<(Vec<Ending>, usize, Duration), Fault> {
        let sent = Instant::now();
        let looked = self.with_identity(|identity| async move {
            let looked = self.first().run::<Look>(DURABLE, |until| {
                let ms = |duration: Duration| duration.as_millis() as u64;
                let own = self.last_look.get();
                let number = own.map(|own| own.number.to_string()).unwrap_or_default();
                let call = self.ending_call(&self.scripts.lease_look).arg(&identity.birth).arg(most).arg(room);
                let call = call.arg(ms(CLAIM)).arg(ms(OUTAGE)).arg(ms(self.options.outage_grace));
                let call = call.arg(ms(BEYOND_OUTAGE)).arg(random_u64()).arg(number);
                call.arg(own.map_or(0, |own| ms(own.answered.elapsed())))
                    .arg(own.map_or(0, |own| ms(own.sent.elapsed()) + 1))
                    .arg(until)
                    .arg(own.map_or(0, |own| ms(own.sent.elapsed() + self.first().timeout()) + 1))
            });
            looked.await
        });
        let Look { number, outage, next, due, endings } = looked.await?;
        *self.last_look.0.lock() = Some(OwnLook { number, sent, answered: Instant::now() });
        match outage {
            Some(Outage::Known(length)) => {
                tracing::warn!(?length, "leases could not be kept alive during an outage; extending all leases");
            }
            Some(Outage::Unknown) => {
                tracing::warn!(
                    "leases could not be kept alive during an outage of unknown length; extending all leases"
                );
            }
            None => {}
        }
        Ok((endings, due, next.unwrap_or(LOOK)))
    }
}
