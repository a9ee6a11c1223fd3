//! Leases: granted, kept and ended in the first partition, swept in each that has sessions under them.

use std::{convert::Infallible, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{interval, sleep};

use super::{fault::Fault, registry::Registry};
use crate::{session::LeaseId, storage::StorageError};

/// Who sweeps a lease has it for so long, and says again that it does; then another replica takes over.
const CLAIM: Duration = Duration::from_secs(2);

/// The deadlines are looked at this often at least, by every replica.
const LOOK: Duration = Duration::from_millis(250);

/// When no replica looked for so long, gateways could not keep their leases alive either.
const OUTAGE: Duration = Duration::from_secs(1);

/// Replicas do not all look at the same moment.
const JITTER: Duration = Duration::from_millis(20);

const SWEEPS_AT_ONCE: usize = 4;

/// How many buckets are looked at in one step, and how many sessions are destroyed in it at most.
const BUCKETS_A_SWEEP: usize = 16;
const SESSIONS_A_SWEEP: usize = 512;

/// How often a lease is attached anew because another one ended in the same moment.
const ATTACH_TRIES: usize = 32;

impl Registry {
    pub(super) async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        loop {
            // By chance: a gateway that comes back with an old one must not meet somebody else's.
            let Some(lease) = LeaseId::from_number(fastrand::u64(..)) else { continue };
            let granted = self.with_identity(|identity| async move {
                let mut call = self.call(&self.scripts.lease_grant, 0, 5);
                for name in ["attached", "deadlines", "leases", "ended"] {
                    call = call.arg(self.key(0, name));
                }
                let call = call.arg(&identity.id).arg(&lease_bytes(lease)[..]).arg(ttl.as_millis() as u64);
                self.link.run_durably(call.arg(owner).arg(self.options.max_leases)).await
            });
            match granted.await {
                Ok(1) => return Ok(lease),
                Ok::<u32, _>(_) => return Err(StorageError::TooManyLeases { limit: self.options.max_leases }),
                Err(Fault::Refused(code)) if code == "TAKEN" => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    pub(super) async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        let kept = self.with_identity(|identity| async move {
            let call = self.call(&self.scripts.lease_keep, 0, 3);
            let call = call.arg(self.key(0, "deadlines")).arg(self.key(0, "leases"));
            self.link.run(call.arg(&identity.id).arg(&lease_bytes(lease)[..])).await
        });
        let ttl: Option<u64> = kept.await?;
        ttl.map(Duration::from_millis).ok_or(StorageError::UnknownLease(lease))
    }

    pub(super) async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        let revoked = self.with_identity(|identity| async move {
            let call = self.ending(&self.scripts.lease_revoke);
            let call = call.arg(&identity.id).arg(&lease_bytes(lease)[..]).arg(CLAIM.as_millis() as u64);
            self.link.run_durably(call).await
        });
        let ended: Option<Vec<u8>> = revoked.await?;
        let ended = ended.ok_or(StorageError::UnknownLease(lease))?;
        Ok(self.sweep(Ended::parse(lease_bytes(lease).to_vec(), &ended)).await?)
    }

    pub(super) async fn lease_count(&self) -> Result<u64, Fault> {
        self.link.command(redis::cmd("HLEN").arg(self.key(0, "leases"))).await
    }

    /// Ends leases as they expire, and sweeps them and those that others left behind. Returns with an error only.
    pub(super) async fn expire_leases(&self) -> Result<Infallible, Fault> {
        let mut sweeps = FuturesUnordered::new();
        loop {
            let room = SWEEPS_AT_ONCE - sweeps.len();
            let (ended, next) = self.look(room).await?;
            let pause = if ended.len() == room { LOOK } else { next.min(LOOK) };
            sweeps.extend(ended.into_iter().map(|ended| self.sweep(ended)));
            tokio::select! {
                Some(swept) = sweeps.next() => drop(swept?),
                () = sleep(pause + JITTER.mul_f64(fastrand::f64())) => {}
            }
        }
    }

    /// Ends the leases that are due, and gives up to `most` to sweep, and how long it is to the next deadline.
    async fn look(&self, most: usize) -> Result<(Vec<Ended>, Duration), Fault> {
        let looked = self.with_identity(|identity| async move {
            let call = self.ending(&self.scripts.lease_expire).arg(&identity.id).arg(most);
            let call = call.arg(CLAIM.as_millis() as u64).arg(OUTAGE.as_millis() as u64);
            self.link.run_durably(call).await
        });
        let answer: Vec<Vec<u8>> = looked.await?;
        let [wait, outage, ended @ ..] = answer.as_slice() else {
            return Err(Fault::Refused("with too few answers".to_owned()));
        };
        if outage == b"1" {
            tracing::warn!("no replica could look after the leases for a while; they start anew");
        }
        let wait = std::str::from_utf8(wait).ok().and_then(|wait| wait.parse().ok());
        let ended: Vec<Ended> = ended.chunks_exact(2).map(|pair| Ended::parse(pair[0].clone(), &pair[1])).collect();
        for Ended { lease, owner, reason, .. } in &ended {
            if *reason == b'x' {
                tracing::info!(lease_id = lease_number(lease), owner, "a lease has expired");
            }
        }
        Ok((ended, wait.map_or(LOOK, Duration::from_millis)))
    }

    fn ending<'a>(&self, script: &'a super::script::Script) -> super::script::Call<'a> {
        let mut call = self.call(script, 0, 5);
        for name in ["deadlines", "leases", "ended", "claims"] {
            call = call.arg(self.key(0, name));
        }
        call
    }

    /// Destroys the sessions under a lease that has ended, and tells how many those were. When it is cut off, some replica's
    /// [`expire_leases`](Self::expire_leases) goes on.
    async fn sweep(&self, ended: Ended) -> Result<u64, Fault> {
        let (lease, known) = (&ended.lease, &ended.known);
        let sweeping = async {
            let mut destroyed = 0;
            for partition in &ended.partitions {
                if *partition < self.layout.partitions {
                    destroyed += self.sweep_partition(*partition, &ended).await?;
                }
            }
            let done = self.with_identity(|identity| async move {
                let call =
                    self.call(&self.scripts.lease_done, 0, 3).arg(self.key(0, "ended")).arg(self.key(0, "claims"));
                self.link.run(call.arg(&identity.id).arg(lease).arg(known)).await
            });
            let _: u32 = done.await?;
            Ok(destroyed)
        };
        tokio::select! {
            swept = sweeping => swept,
            fault = self.claim(lease) => Err(fault),
        }
    }

    /// Says again and again that a lease is being swept.
    async fn claim(&self, lease: &[u8]) -> Fault {
        let mut again = interval(CLAIM / 4);
        again.tick().await;
        loop {
            again.tick().await;
            let claimed = self.with_identity(|identity| async move {
                let call = self.call(&self.scripts.lease_claim, 0, 2).arg(self.key(0, "claims"));
                self.link.run::<u32>(call.arg(&identity.id).arg(lease).arg(CLAIM.as_millis() as u64)).await
            });
            if let Err(fault) = claimed.await {
                return fault;
            }
        }
    }

    async fn sweep_partition(&self, partition: u32, ended: &Ended) -> Result<u64, Fault> {
        let lease = &ended.lease;
        let closed = self.with_identity(|identity| async move {
            let call = self.call(&self.scripts.lease_close, partition, 4);
            let call = call.arg(self.key(partition, "attached")).arg(self.key(partition, "closed"));
            self.link.run_durably(call.arg(self.lease_key(partition, lease)).arg(&identity.id).arg(lease)).await
        });
        let closed: Option<(Vec<u8>, Vec<u8>)> = closed.await?;
        let Some((slot, bits)) = closed else { return Ok(0) };
        let slot = &slot;
        let buckets = self.buckets_of(partition, &bits);
        let mut left = buckets.as_slice();
        let mut destroyed = 0;
        while !left.is_empty() {
            let some = &left[..left.len().min(BUCKETS_A_SWEEP)];
            let swept = self.with_identity(|identity| async move {
                let mut call = self.call(&self.scripts.lease_sweep, partition, 3 + some.len());
                call = call.arg(self.key(partition, "log")).arg(self.key(partition, "closed"));
                for bucket in some {
                    call = call.arg(self.bucket_key(*bucket));
                }
                let call = call.arg(&identity.id).arg(fastrand::u32(..)).arg(self.options.retain_events).arg(lease);
                self.link.run_durably(call.arg(slot).arg(&[ended.reason][..]).arg(SESSIONS_A_SWEEP)).await
            });
            let (some, done): (u64, usize) = swept.await?;
            destroyed += some;
            left = left.get(done..).unwrap_or_default();
        }
        let swept = self.with_identity(|identity| async move {
            let call = self.call(&self.scripts.lease_swept, partition, 3);
            let call = call.arg(self.key(partition, "closed")).arg(self.lease_key(partition, lease));
            self.link.run(call.arg(&identity.id).arg(lease)).await
        });
        let _: u32 = swept.await?;
        Ok(destroyed)
    }

    /// The buckets of a lease's set.
    fn buckets_of(&self, partition: u32, bits: &[u8]) -> Vec<u32> {
        let (a_bit, a_partition) = (self.buckets_a_bit(), self.buckets_a_partition());
        let set = (0..).zip(bits).flat_map(|(index, byte)| {
            // Redis counts bits from the highest.
            (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| index * 8 + bit)
        });
        let within =
            |bit: u32| (bit * a_bit..a_partition.min((bit + 1) * a_bit)).map(|bucket| partition * a_partition + bucket);
        set.flat_map(within).collect()
    }

    /// Lets sessions of a partition come under a lease. Tells whether the lease lives.
    pub(super) async fn attach_lease(&self, partition: u32, lease: LeaseId) -> Result<bool, Fault> {
        if partition == 0 {
            // It was attached when it was granted.
            return Ok(false);
        }
        let bytes = &lease_bytes(lease)[..];
        for _ in 0..ATTACH_TRIES {
            let ends: Option<String> =
                self.link.command(redis::cmd("HGET").arg(self.key(partition, "meta")).arg("ends")).await?;
            let lives = self.with_identity(|identity| async move {
                let call = self.call(&self.scripts.lease_attach, 0, 2).arg(self.key(0, "leases"));
                self.link.run_durably::<u32>(call.arg(&identity.id).arg(bytes).arg(partition)).await
            });
            if lives.await? == 0 {
                return Ok(false);
            }
            let ends = &ends;
            let adopted = self.with_identity(|identity| async move {
                let call = self.call(&self.scripts.lease_adopt, partition, 2).arg(self.key(partition, "attached"));
                self.link
                    .run_durably::<u32>(call.arg(&identity.id).arg(bytes).arg(ends.as_deref().unwrap_or("0")))
                    .await
            });
            if adopted.await? == 1 {
                return Ok(true);
            }
        }
        let what = "leases end faster than this one can be attached to a partition";
        Err(redis::RedisError::from((redis::ErrorKind::Client, what)).into())
    }
}

/// A lease that has ended, and what of it is to be swept.
struct Ended {
    lease: Vec<u8>,
    /// All of the following, as Redis has it.
    known: Vec<u8>,
    /// The letter of its sessions' events.
    reason: u8,
    partitions: Vec<u32>,
    owner: String,
}

impl Ended {
    /// Reads `REASON PARTITIONS OWNER`.
    fn parse(lease: Vec<u8>, known: &[u8]) -> Self {
        let text = String::from_utf8_lossy(known);
        let mut parts = text.splitn(3, ' ');
        let reason = parts.next().and_then(|reason| reason.bytes().next()).unwrap_or(b'x');
        let partitions =
            parts.next().unwrap_or("0").split(',').filter_map(|partition| partition.parse().ok()).collect();
        Self { lease, known: known.to_vec(), reason, partitions, owner: parts.next().unwrap_or_default().to_owned() }
    }
}

pub(super) fn lease_bytes(lease: LeaseId) -> [u8; 8] {
    lease.number().to_be_bytes()
}

fn lease_number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_be_bytes).unwrap_or_default()
}
