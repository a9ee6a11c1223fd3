//! Ends leases and destroys their sessions.
//!
//! A lease ends in three steps. It is marked in the first partition, closed in all partitions, and recorded as ended in
//! the first partition. From then on no session can come under it in any partition, even after a crash. Only after the
//! third step is the end reported, and only then are the sessions destroyed.
//!
//! Every step can be taken by any replica, any number of times, and for many leases together.

use tokio::time::interval;

use super::{
    expiry::CLAIM,
    fault::Fault,
    lease::{lease_bytes, lease_number},
    partition::{ASK, DURABLE, Partition},
    registry::{Identity, Registry},
    script::{Call, Script},
};
use crate::{random::random_u64, session::LeaseId};

/// The maximum number of buckets that one step of a sweep searches, and of sessions that it destroys.
const BUCKETS_A_STEP: usize = 1024;
const SESSIONS_A_STEP: usize = 512;

/// The maximum number of leases that are swept together. Every step of the sweep names all of them.
const LEASES_A_SWEEP: usize = 64;

/// How often the end of a lease is retried because another replica has marked the lease again meanwhile.
const END_TRIES: usize = 8;

/// A lease that is ending, or that has ended and must be swept.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) lease: Vec<u8>,
    /// The letter of the destroy events of its sessions.
    pub(super) reason: u8,
    pub(super) owner: String,
    /// The number of sessions under the lease, by counts that may be wrong after a key was lost.
    pub(super) sessions: u64,
    /// Whether the lease begins to linger instead of ending.
    lingers: bool,
    /// Whether the end was recorded.
    has_ended: bool,
    /// The number of the mark.
    number: String,
}

impl Ending {
    /// Parses the record that `lease_end.lua` makes of a lease: state and reason, number of the mark, deadline for
    /// recording the end, end of the linger (0 for none), ttl, owner.
    pub(super) fn parse(lease: Vec<u8>, known: &[u8]) -> Self {
        let text = String::from_utf8_lossy(known);
        let state = text.as_bytes();
        let part = |n: usize| text.splitn(6, ' ').nth(n).unwrap_or_default().to_owned();
        Self {
            lease,
            reason: state.get(1).copied().unwrap_or(0),
            owner: part(5),
            sessions: 0,
            lingers: part(3) != "0",
            has_ended: state.first() == Some(&b'c'),
            number: part(1),
        }
    }
}

/// The state of a lease in the first partition.
pub(super) enum State {
    Lives,
    Lingers,
    /// Marked. Contains its record.
    Ending(Vec<u8>),
    /// Ended, and not yet swept in all partitions. Contains its record.
    Ended(Vec<u8>),
    /// Ended and swept, or never granted.
    Gone,
}

/// A lease that is closed in a partition.
struct Closed<'a> {
    ending: &'a Ending,
    /// Its index among the leases that are swept together.
    index: usize,
    slot: Vec<u8>,
}

/// Returns the fault if the end of a lease, or its linger, was not recorded in time.
pub(super) fn too_slow() -> Fault {
    Fault::unsent("Redis was too slow to revoke the lease in time; the lease lives on")
}

impl Registry {
    /// Starts a call of a script that ends leases.
    pub(super) fn ending_call(&self, script: &Script) -> Call {
        self.call(script, self.first(), &["leases", "deadlines", "ended", "claims"], 0)
    }

    /// Takes the remaining steps for a lease that somebody marked. The lease may turn out to be alive after all. If it
    /// ended, the next look for leases to sweep finds it.
    pub(super) async fn finish_ending(&self, lease: LeaseId, known: &[u8]) -> Result<(), Fault> {
        self.end(vec![Ending::parse(lease_bytes(lease).to_vec(), known)]).await.map(drop)
    }

    /// Ends a lease that was just marked, and destroys its sessions. Returns their number after all are destroyed.
    pub(super) async fn end_and_sweep(&self, lease: LeaseId, mut known: Vec<u8>) -> Result<u64, Fault> {
        let mut destroyed = 0;
        for _ in 0..END_TRIES {
            let ending = Ending::parse(lease_bytes(lease).to_vec(), &known);
            let ended = if ending.has_ended { vec![ending] } else { self.end(vec![ending]).await? };
            if !ended.is_empty() {
                destroyed += self.sweep(&ended).await?.into_iter().sum::<u64>();
            }
            match self.state_of(lease).await? {
                // Another replica has marked it again, perhaps because a partition came back with the lease.
                State::Ending(again) | State::Ended(again) => known = again,
                State::Lives | State::Lingers => return Err(too_slow()),
                State::Gone => return Ok(destroyed),
            }
        }
        Err(Fault::unsent("other replicas keep marking the lease; it will end soon"))
    }

    /// Asks the first partition for the state of a lease.
    pub(super) async fn state_of(&self, lease: LeaseId) -> Result<State, Fault> {
        let asked = self.with_identity(|identity| async move {
            let first = self.first();
            let asked = first.run::<(i64, Vec<u8>)>(ASK, |_| {
                let call = self.call(&self.scripts.lease_attach, first, &["leases", "ended"], 0);
                call.arg(&identity.birth).arg(&lease_bytes(lease)[..])
            });
            asked.await
        });
        Ok(match asked.await? {
            (1, _) => State::Lives,
            (2, _) => State::Lingers,
            (0, known) if known.first() == Some(&b'm') => State::Ending(known),
            (0, known) => State::Ended(known),
            _ => State::Gone,
        })
    }

    /// Closes marked leases in all partitions, and records that they have ended or begun to linger. Returns those that
    /// have ended.
    pub(super) async fn end(&self, mut endings: Vec<Ending>) -> Result<Vec<Ending>, Fault> {
        let leases: Vec<&[u8]> = endings.iter().map(|ending| &ending.lease[..]).collect();
        let leases = &leases[..];
        let kinds: String = endings.iter().map(|ending| if ending.lingers { '~' } else { '.' }).collect();
        let kinds = kinds.as_str();
        let marks: Vec<_> = endings.iter().map(|ending| (&ending.lease[..], ending.number.as_str())).collect();
        let marks = &marks[..];
        let (held, ended) = self
            .with_identity(|identity| async move {
                let birth = &identity.birth;
                let closed = self.each_partition(|partition| async move {
                    let number = random_u64();
                    let closed = partition.run::<Vec<u64>>(DURABLE, |_| {
                        let call = self.call(&self.scripts.lease_close, &partition, &["attached", "closed", "held"], 0);
                        call.arg(birth).arg(number).arg(kinds).arg(leases)
                    });
                    closed.await
                });
                let held = closed.await?;
                let ended = self.first().run::<Vec<u64>>(DURABLE, |_| {
                    let names = ["leases", "deadlines", "ended", "claims", "ids"];
                    let call = self.call(&self.scripts.lease_ended, self.first(), &names, 0).arg(birth);
                    marks.iter().fold(call, |call, (lease, number)| call.arg(*lease).arg(*number))
                });
                Ok((held, ended.await?))
            })
            .await?;
        for (index, ending) in endings.iter_mut().enumerate() {
            ending.sessions = held.iter().filter_map(|partition| partition.get(index)).sum();
        }
        let mut ended = ended.into_iter();
        endings.retain(|_| ended.next() == Some(1));
        for Ending { lease, owner, reason, has_ended, .. } in &mut endings {
            if *reason == b'x' && !*has_ended {
                tracing::info!(lease_id = lease_number(lease), owner, "lease expired");
            }
            *has_ended = true;
        }
        Ok(endings)
    }

    /// Destroys the sessions of leases that have ended. Returns the number for each lease. If this is interrupted, the
    /// [`expire_leases`](Self::expire_leases) of some replica finishes the sweep.
    pub(super) async fn sweep(&self, ended: &[Ending]) -> Result<Vec<u64>, Fault> {
        let sweeping = async {
            let mut destroyed = vec![0; ended.len()];
            for partition in self.partitions() {
                for (ended, destroyed) in ended.chunks(LEASES_A_SWEEP).zip(destroyed.chunks_mut(LEASES_A_SWEEP)) {
                    let some = self.with_identity(|identity| async move {
                        self.sweep_partition(partition, &identity, ended).await
                    });
                    destroyed.iter_mut().zip(some.await?).for_each(|(sum, some)| *sum += some);
                }
            }
            self.forget_ended(ended).await?;
            Ok(destroyed)
        };
        tokio::select! {
            swept = sweeping => swept,
            fault = self.keep_claim(ended) => Err(fault),
        }
    }

    /// Renews the claim on leases until the future is dropped. Returns only after a fault.
    async fn keep_claim(&self, ended: &[Ending]) -> Fault {
        let mut again = interval(CLAIM / 4);
        again.tick().await;
        loop {
            again.tick().await;
            let claimed = self.with_identity(|identity| async move {
                let claimed = self.first().run::<u32>(DURABLE, |_| {
                    let call = self.call(&self.scripts.lease_claim, self.first(), &["claims"], 0);
                    let call = call.arg(&identity.birth).arg(CLAIM.as_millis() as u64);
                    ended.iter().fold(call, |call, ending| call.arg(&ending.lease[..]))
                });
                claimed.await
            });
            if let Err(fault) = claimed.await {
                return fault;
            }
        }
    }

    /// Deletes the records of leases that are swept in all partitions.
    async fn forget_ended(&self, ended: &[Ending]) -> Result<(), Fault> {
        let done = self.with_identity(|identity| async move {
            let done = self.first().run::<u32>(DURABLE, |_| {
                let call = self.call(&self.scripts.lease_done, self.first(), &["ended", "claims"], 0);
                let call = call.arg(&identity.birth);
                ended.iter().fold(call, |call, ending| call.arg(&ending.lease[..]).arg(&ending.number))
            });
            done.await
        });
        done.await.map(drop)
    }

    async fn sweep_partition(
        &self,
        partition: &Partition,
        identity: &Identity,
        ended: &[Ending],
    ) -> Result<Vec<u64>, Fault> {
        let mut destroyed = vec![0; ended.len()];
        let leases = ended.iter().map(|ending| &ending.lease[..]);
        let (_, found) = self.find(partition, identity, None, leases).await?;
        // None if a set of buckets was lost. Then every bucket must be searched.
        let buckets = self.buckets_with(partition.number, found.iter().filter(|found| !found.slot.is_empty()));
        let found = ended.iter().zip(found).enumerate().filter(|(_, (_, found))| !found.slot.is_empty());
        let closed: Vec<_> = found.map(|(index, (ending, found))| Closed { ending, index, slot: found.slot }).collect();
        if closed.is_empty() {
            return Ok(destroyed);
        }
        let is_swept = match buckets {
            Some(buckets) => {
                self.sweep_buckets(partition, identity, &closed, buckets.into_iter(), false, &mut destroyed).await?;
                !self.forget_swept(partition, identity, &closed, false).await?
            }
            None => false,
        };
        if !is_swept {
            let buckets = self.buckets_of(partition.number);
            self.sweep_buckets(partition, identity, &closed, buckets, true, &mut destroyed).await?;
            self.forget_swept(partition, identity, &closed, true).await?;
        }
        Ok(destroyed)
    }

    /// Destroys the sessions in `buckets` that are under closed leases or, if `closed` is empty, under unknown slots.
    /// Adds to `destroyed` the number for each lease, and returns the sum. With `is_all`, these are all buckets of the
    /// partition, and each is searched, whatever the counts of sessions say.
    async fn sweep_buckets(
        &self,
        partition: &Partition,
        identity: &Identity,
        closed: &[Closed<'_>],
        buckets: impl Iterator<Item = u32> + Send,
        is_all: bool,
        destroyed: &mut [u64],
    ) -> Result<u64, Fault> {
        let mut all = 0;
        let mut cursor = "0".to_owned();
        let mut buckets = buckets;
        let mut some = Vec::with_capacity(BUCKETS_A_STEP);
        loop {
            some.extend(buckets.by_ref().take(BUCKETS_A_STEP - some.len()));
            if some.is_empty() {
                return Ok(all);
            }
            let some_now = &some;
            let mark = self.new_mark();
            let swept = partition.run::<(usize, String, u64, Vec<u64>)>(DURABLE, |_| {
                let names = ["log", "closed", "slots", "held"];
                let call = self.call(&self.scripts.lease_sweep, partition, &names, some_now.len());
                let call = some_now.iter().fold(call, |call, bucket| call.arg(partition.bucket_key(*bucket)));
                let call = call.arg(&identity.birth).arg(&mark[..]).arg(self.options.retain_events);
                let call = call.arg(SESSIONS_A_STEP).arg(&cursor).arg(i32::from(is_all));
                closed.iter().fold(call, |call, Closed { ending, slot, .. }| {
                    call.arg(&ending.lease[..]).arg(&slot[..]).arg(&[ending.reason][..])
                })
            });
            let (done, next, count, counts) = swept.await?;
            all += count;
            for (Closed { index, .. }, count) in closed.iter().zip(counts) {
                destroyed[*index] += count;
            }
            some.drain(..done.min(some.len()));
            cursor = next;
            tokio::task::yield_now().await;
        }
    }

    /// Deletes a partition's keys of leases that are swept there. Returns whether some lease still has sessions, by the
    /// counts. Such a lease is kept, unless `is_all` says that all buckets were searched.
    async fn forget_swept(
        &self,
        partition: &Partition,
        identity: &Identity,
        closed: &[Closed<'_>],
        is_all: bool,
    ) -> Result<bool, Fault> {
        let forgotten = partition.run::<Vec<i64>>(DURABLE, |_| {
            let call = self.call(&self.scripts.lease_swept, partition, &["closed", "slots", "held"], closed.len());
            let call = closed.iter().fold(call, |call, closed| call.arg(partition.lease_key(&closed.ending.lease)));
            let call = call.arg(&identity.birth).arg(i32::from(is_all));
            closed.iter().fold(call, |call, closed| call.arg(&closed.ending.lease[..]))
        });
        Ok(forgotten.await?.into_iter().any(|left| left != 0))
    }

    /// Destroys the sessions of a partition that are under slots without a known lease.
    pub(super) async fn sweep_unknown(&self, partition: &Partition, identity: &Identity) -> Result<(), Fault> {
        let buckets = self.buckets_of(partition.number);
        let destroyed = self.sweep_buckets(partition, identity, &[], buckets, true, &mut []).await?;
        if destroyed > 0 {
            tracing::error!(
                partition = partition.number,
                destroyed,
                "destroyed sessions under leases that Redis had lost"
            );
        }
        Ok(())
    }
}
