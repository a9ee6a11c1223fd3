//! Grants, keeps and revokes leases in the first partition, and attaches them to the partitions that have sessions
//! under them.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    ending::{State, too_slow},
    expiry::CLAIM,
    fault::{Answer, Fault},
    partition::{CHANGE, FENCED, Partition},
    registry::Registry,
};
use crate::{
    random::random_u64,
    session::LeaseId,
    storage::{MAX_LINGER, MAX_TTL, StorageError},
};

/// How often attaching a lease is retried because other leases were closed meanwhile.
const ATTACH_TRIES: usize = 32;

/// The first partition's record of a lease that has not ended.
pub(super) struct LeaseRecord {
    pub(super) ttl: Duration,
    pub(super) owner: Arc<str>,
    pub(super) lingers: bool,
}

impl LeaseRecord {
    /// Parses a record: the ttl and the owner and, before them, `~` and the time of the end if the lease lingers.
    pub(super) fn parse(record: &[u8]) -> Self {
        let text = String::from_utf8_lossy(record);
        let lingering = text.strip_prefix('~').map(|text| text.split_once(' ').map_or("", |(_, rest)| rest));
        let (ttl, owner) = lingering.unwrap_or(&text).split_once(' ').unwrap_or_default();
        Self { ttl: Duration::from_millis(ttl.parse().unwrap_or(0)), owner: owner.into(), lingers: lingering.is_some() }
    }
}

/// Whether a lease is alive, lingers or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Lives,
    Lingers,
    Ended,
}

impl Registry {
    pub(super) async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        // Rounded up, because a lease must not expire before its ttl.
        let ttl = ttl.min(MAX_TTL).as_nanos().div_ceil(1_000_000) as u64;
        loop {
            // Random, so that a gateway that comes back with an old id does not use another gateway's lease.
            let Some(lease) = LeaseId::from_number(random_u64() & LeaseId::MAX) else { continue };
            let granted = self.with_identity(|identity| async move {
                let first = self.first();
                let granted = first.run(CHANGE, |until| {
                    let names = ["leases", "deadlines", "ended", "attached", "slots", "held", "ids"];
                    let call = self.call(&self.scripts.lease_grant, first, &names, 0).arg(&identity.birth).arg(until);
                    call.arg(&lease_bytes(lease)[..]).arg(ttl).arg(owner).arg(self.options.max_leases)
                });
                granted.await
            });
            match granted.await {
                Ok(1) => return Ok(lease),
                Ok::<u32, _>(_) => return Err(StorageError::TooManyLeases { limit: self.options.max_leases }),
                Err(Fault::Script(Answer::Taken)) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    pub(super) async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        loop {
            let kept = self.with_identity(|identity| async move {
                let first = self.first();
                let kept = first.run::<(i64, Vec<u8>)>(FENCED, |until| {
                    let names = ["leases", "deadlines", "ended"];
                    let call = self.call(&self.scripts.lease_keep, first, &names, 0).arg(&identity.birth);
                    call.arg(until).arg(&lease_bytes(lease)[..])
                });
                kept.await
            });
            match kept.await? {
                // Somebody has marked the lease. It may turn out to be alive.
                (0, known) => self.finish_ending(lease, &known).await?,
                (-1, _) => return Err(StorageError::UnknownLease(lease)),
                (-2, _) => return Err(StorageError::LeaseLingers(lease)),
                (ttl, _) => return Ok(Duration::from_millis(ttl.unsigned_abs())),
            }
        }
    }

    pub(super) async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        loop {
            let known: Option<Vec<u8>> = {
                let mut ask = redis::cmd("HGET");
                self.first().ask(ask.arg(self.first().key("leases")).arg(&lease_bytes(lease)[..])).await?
            };
            if let Some(known) = known {
                return Ok(Some(LeaseRecord::parse(&known).owner));
            }
            // Somebody may have marked the lease. It may turn out to be alive.
            if !self.lives(lease).await? {
                return Ok(None);
            }
        }
    }

    pub(super) async fn revoke_lease(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        // The end of the lease may be recorded until this instant, so no failure is returned before it.
        let expiry = Instant::now() + 2 * self.first().timeout();
        let revoked = self.revoke(lease, linger, expiry).await;
        if revoked.as_ref().is_err_and(|error| !matches!(error, StorageError::UnknownLease(_))) {
            sleep_until(expiry).await;
        }
        revoked
    }

    async fn revoke(&self, lease: LeaseId, linger: Duration, expiry: Instant) -> Result<u64, StorageError> {
        // Rounded up, because a lease must not end before its linger has passed.
        let linger_ms = linger.min(MAX_LINGER).as_nanos().div_ceil(1_000_000) as u64;
        loop {
            let revoked = self.with_identity(|identity| async move {
                let first = self.first();
                let revoked = first.run::<(i64, Vec<u8>)>(CHANGE, |until| {
                    let record_by = first.clock.until(expiry);
                    let call =
                        self.ending_call(&self.scripts.lease_revoke).arg(&identity.birth).arg(until.min(record_by));
                    let call = call.arg(&lease_bytes(lease)[..]).arg(CLAIM.as_millis() as u64);
                    call.arg(random_u64()).arg(record_by).arg(linger_ms)
                });
                revoked.await
            });
            match revoked.await? {
                (1, known) if linger.is_zero() => return Ok(self.end_and_sweep(lease, known).await?),
                (1, _) => {
                    return match self.settled_state_of(lease).await? {
                        State::Lives => Err(too_slow().into()),
                        _ => Ok(0),
                    };
                }
                (2, _) => return Ok(0),
                (0, known) => self.finish_ending(lease, &known).await?,
                _ => return Err(StorageError::UnknownLease(lease)),
            }
        }
    }

    pub(super) async fn lease_count(&self) -> Result<u64, Fault> {
        self.first().ask(redis::cmd("HLEN").arg(self.first().key("leases"))).await
    }

    /// Attaches a lease to a partition if it is alive, so that sessions there can come under it. Any other
    /// result means that the lease has ended or lingers in the whole registry.
    pub(super) async fn attach_lease(&self, partition: &Partition, lease: LeaseId) -> Result<Standing, Fault> {
        self.attach(partition, lease, false).await
    }

    /// Attaches a lease to a partition unless it has ended, so that sessions under it can be destroyed there.
    pub(super) async fn attach_to_destroy(&self, partition: &Partition, lease: LeaseId) -> Result<Standing, Fault> {
        self.attach(partition, lease, true).await
    }

    async fn attach(&self, partition: &Partition, lease: LeaseId, to_destroy: bool) -> Result<Standing, Fault> {
        for _ in 0..ATTACH_TRIES {
            let closing: Option<String> =
                partition.ask(redis::cmd("HGET").arg(partition.key("meta")).arg("closing")).await?;
            let (standing, lingers) = match self.settled_state_of(lease).await? {
                State::Lives => (Standing::Lives, ""),
                State::Lingers if to_destroy => (Standing::Lingers, "~"),
                State::Lingers => return Ok(Standing::Lingers),
                _ => return Ok(Standing::Ended),
            };
            let closing = closing.as_deref().unwrap_or("0");
            let adopted = self.with_identity(|identity| async move {
                let adopted = partition.run::<u32>(CHANGE, |until| {
                    let names = ["attached", "slots", "held", "closed"];
                    let call = self.call(&self.scripts.lease_adopt, partition, &names, 0).arg(&identity.birth);
                    call.arg(until).arg(&lease_bytes(lease)[..]).arg(closing).arg(lingers)
                });
                match adopted.await {
                    Err(Fault::Script(Answer::Unfit)) => self.mend(partition, &identity).await.map(|()| 0),
                    adopted => adopted,
                }
            });
            if adopted.await? == 1 {
                return Ok(standing);
            }
        }
        Err(Fault::unsent("leases end faster than the lease can be attached to a partition"))
    }
}

pub(super) fn lease_bytes(lease: LeaseId) -> [u8; 8] {
    lease.number().to_be_bytes()
}

pub(super) fn lease_number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_be_bytes).unwrap_or_default()
}
