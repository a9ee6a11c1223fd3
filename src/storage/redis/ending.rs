//! The end of leases.
//!
//! A lease is first marked in the first partition, then closed in every partition at once, and then recorded as ended
//! in the first one. Only then is anybody told, and only then are its sessions destroyed. From then on no session can
//! come under it in any partition, whatever crashes. Any replica may take each step, any number of times. Several
//! leases go through the steps together.

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

/// The most buckets that one step looks into, and the most sessions that it destroys.
const BUCKETS_A_STEP: usize = 1024;
const SESSIONS_A_STEP: usize = 512;

/// The most leases that are swept together. Each step of the sweep names all of them.
const LEASES_A_SWEEP: usize = 64;

/// How often a lease is closed again because another replica has marked it again meanwhile.
const END_TRIES: usize = 8;

/// A lease that is ending, or that has ended and has to be swept.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) lease: Vec<u8>,
    /// The letter of its sessions' events.
    pub(super) reason: u8,
    pub(super) owner: String,
    /// How many sessions are under it, if the counts can be trusted.
    pub(super) sessions: u64,
    /// Whether it lingers first.
    lingers: bool,
    /// Whether it has ended already.
    has_ended: bool,
    /// The number of its mark.
    number: String,
}

impl Ending {
    /// Parses what `lease_end.lua` records of a lease: state and reason, the number of its mark, until when its end may
    /// be recorded, when it ends if it is to linger, its ttl and its owner.
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

/// What the first partition says about a lease.
pub(super) enum State {
    Lives,
    Lingers,
    /// Marked, with its record.
    Ending(Vec<u8>),
    /// Ended and not yet swept everywhere, with its record.
    Ended(Vec<u8>),
    /// Ended and swept, or never granted.
    Gone,
}

/// A lease that is closed in a partition.
struct Closed<'a> {
    ending: &'a Ending,
    /// Its place among the leases that are swept together.
    place: usize,
    slot: Vec<u8>,
}

/// The fault if the end of a lease, or its linger, was not recorded in time.
pub(super) fn too_slow() -> Fault {
    Fault::unsent("Redis was too slow to end the lease in time; it lives on")
}

/// Returns a number that tells one mark or closing from all others. Scripts take it as digits.
pub(super) fn random_number() -> u64 {
    random_u64()
}

impl Registry {
    /// Returns a call of a script that ends leases.
    pub(super) fn ending_call(&self, script: &Script) -> Call {
        self.call(script, self.first(), &["leases", "deadlines", "ended", "claims"], 0)
    }

    /// Ends a lease that has been marked, unless it turns out to be alive. The next look for leases to sweep finds its
    /// sessions.
    pub(super) async fn finish_ending(&self, lease: LeaseId, known: &[u8]) -> Result<(), Fault> {
        self.end(vec![Ending::parse(lease_bytes(lease).to_vec(), known)]).await.map(drop)
    }

    /// Ends a lease that was just marked, and destroys its sessions. Returns how many once none is left.
    pub(super) async fn end_and_sweep(&self, lease: LeaseId, mut known: Vec<u8>) -> Result<u64, Fault> {
        let mut destroyed = 0;
        for _ in 0..END_TRIES {
            let ending = Ending::parse(lease_bytes(lease).to_vec(), &known);
            let ended = if ending.has_ended { vec![ending] } else { self.end(vec![ending]).await? };
            if !ended.is_empty() {
                destroyed += self.sweep(&ended).await?.into_iter().sum::<u64>();
            }
            match self.state_of(lease).await? {
                // A replica has marked it again, perhaps because it found sessions from before the end.
                State::Ending(again) | State::Ended(again) => known = again,
                State::Lives | State::Lingers => return Err(too_slow()),
                State::Gone => return Ok(destroyed),
            }
        }
        Err(Fault::unsent("other replicas keep marking the lease; it ends soon"))
    }

    /// Asks the first partition about a lease.
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

    /// Closes marked leases in every partition, and records that they have ended. Returns those that have.
    pub(super) async fn end(&self, mut endings: Vec<Ending>) -> Result<Vec<Ending>, Fault> {
        let leases: Vec<&[u8]> = endings.iter().map(|ending| &ending.lease[..]).collect();
        let leases = &leases[..];
        let ways: String = endings.iter().map(|ending| if ending.lingers { '~' } else { '.' }).collect();
        let ways = ways.as_str();
        let marks: Vec<_> = endings.iter().map(|ending| (&ending.lease[..], ending.number.as_str())).collect();
        let marks = &marks[..];
        let (held, ended) = self
            .with_identity(|identity| async move {
                let birth = &identity.birth;
                let closed = self.each_partition(|partition| async move {
                    let number = random_number();
                    let closed = partition.run::<Vec<u64>>(DURABLE, |_| {
                        let call = self.call(&self.scripts.lease_close, &partition, &["attached", "closed", "held"], 0);
                        call.arg(birth).arg(number).arg(ways).arg(leases)
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
        for (place, ending) in endings.iter_mut().enumerate() {
            ending.sessions = held.iter().filter_map(|partition| partition.get(place)).sum();
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

    /// Destroys the sessions of leases that have ended. Returns how many for each. If this is cut off, some replica's
    /// [`expire_leases`](Self::expire_leases) finishes the sweep.
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

    /// Renews the claim on leases while they are swept.
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

    /// Forgets leases that are swept in every partition.
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
        // None if a set of buckets was lost. Then every bucket has to be searched.
        let buckets = self.buckets_with(partition.number, found.iter().filter(|found| !found.slot.is_empty()));
        let found = ended.iter().zip(found).enumerate().filter(|(_, (_, found))| !found.slot.is_empty());
        let closed: Vec<_> = found.map(|(place, (ending, found))| Closed { ending, place, slot: found.slot }).collect();
        if closed.is_empty() {
            return Ok(destroyed);
        }
        let is_over = match buckets {
            Some(buckets) => {
                self.sweep_buckets(partition, identity, &closed, buckets.into_iter(), false, &mut destroyed).await?;
                !self.forget_swept(partition, identity, &closed, false).await?
            }
            None => false,
        };
        if !is_over {
            let buckets = self.buckets_of(partition.number);
            self.sweep_buckets(partition, identity, &closed, buckets, true, &mut destroyed).await?;
            self.forget_swept(partition, identity, &closed, true).await?;
        }
        Ok(destroyed)
    }

    /// Destroys sessions in some buckets: those under closed leases or, if no lease is named, those under unknown
    /// slots. `is_all` says that these are all buckets. Each of them is searched then, whatever the counts say.
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
            for (Closed { place, .. }, count) in closed.iter().zip(counts) {
                destroyed[*place] += count;
            }
            some.drain(..done.min(some.len()));
            cursor = next;
            // Lets other tasks run.
            tokio::task::yield_now().await;
        }
    }

    /// Forgets leases that are swept in a partition. Returns whether one of them still has sessions, by the counts.
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

    /// Destroys the sessions of a partition that are under unknown slots.
    pub(super) async fn sweep_unknown(&self, partition: &Partition, identity: &Identity) -> Result<(), Fault> {
        let buckets = self.buckets_of(partition.number);
        let destroyed = self.sweep_buckets(partition, identity, &[], buckets, true, &mut []).await?;
        if destroyed > 0 {
            tracing::error!(partition = partition.number, destroyed, "destroyed sessions whose lease was lost");
        }
        Ok(())
    }
}
