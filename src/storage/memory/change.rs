//! Creates and destroys sessions, one group at a time: first in their buckets, then in the log.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::{
    MemoryStorage, SESSIONS_BETWEEN_YIELDS, Spot,
    bucket::Bucket,
    held::{GROUP, Held},
    lease::Lease,
    log::Log,
    slots::LeaseState,
};
use crate::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{
        Answers, Creation, Place, Places, SessionStorage, StorageError, Takeover,
        journal::{Lsn, Record},
    },
    table::LeaseSlot,
};

/// What to do with each session of a call.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    Create(Option<(LeaseId, &'a Lease)>, Takeover),
    Destroy(Option<&'a Lease>),
}

impl Change<'_> {
    /// The lease under which sessions are created.
    fn lease(self) -> Option<LeaseId> {
        match self {
            Self::Create(lease, _) => lease.map(|(id, _)| id),
            Self::Destroy(_) => None,
        }
    }
}

/// A change made to the nth session of a group, and not yet in the log.
pub(super) struct Made {
    nth: usize,
    bucket: u32,
    event: SessionEvent,
}

impl Made {
    pub(super) fn new(nth: usize, bucket: u32, event: SessionEvent) -> Self {
        Self { nth, bucket, event }
    }

    pub(super) fn session(&self) -> SessionKey {
        self.event.session
    }
}

/// The outcome for one session.
enum Done {
    Changed(SessionEvent),
    /// Nothing changed. The session is under this lease, if it exists. The answer depends on this record.
    Unchanged(Option<LeaseId>, Lsn),
}

impl MemoryStorage {
    /// Changes each session and lets other tasks run in between. Waits until all of it is durable. Followers of the log
    /// are woken once for all the sessions that are changed without a yield.
    pub(super) async fn change<T>(
        &self,
        sessions: &[SessionKey],
        change: Change<'_>,
        answer: impl Fn(Creation) -> T,
    ) -> Result<Answers<T>, StorageError> {
        let mut results = Vec::with_capacity(sessions.len());
        let mut places = Places::default();
        let mut newest = Lsn(0);
        for part in sessions.chunks(SESSIONS_BETWEEN_YIELDS) {
            if !results.is_empty() {
                tokio::task::yield_now().await;
            }
            self.admit().await?;
            let mut push = |changed, lsn| {
                results.push(answer(changed));
                newest = newest.max(lsn);
            };
            let done = match part {
                [_] => self.change_some::<1>(part, change, &mut places, &mut push),
                _ => {
                    let mut change_some = |some| self.change_some::<GROUP>(some, change, &mut places, &mut push);
                    part.chunks(GROUP).try_for_each(&mut change_some)
                }
            };
            self.logs.iter().for_each(Log::settle);
            if let Err(error) = done {
                // The error reports a limit or the end of a lease, which a crash may still undo.
                self.all_durable().await.map_err(StorageError::Refused)?;
                return Err(error);
            }
        }
        self.durable(newest).await.map_err(StorageError::Refused)?;
        Ok(Answers { sessions: results, places })
    }

    /// Changes up to `N` sessions, in order. Calls `push` with the outcome for each.
    fn change_some<const N: usize>(
        &self,
        sessions: &[SessionKey],
        change: Change<'_>,
        places: &mut Places,
        mut push: impl FnMut(Creation, Lsn),
    ) -> Result<(), StorageError> {
        let all: SmallVec<[(SessionKey, Spot); N]> =
            sessions.iter().map(|session| (*session, self.spot_of(session))).collect();
        if let Change::Create(Some((_, lease)), _) = change {
            all.iter().for_each(|(_, spot)| lease.enter(spot.bucket));
        }
        let is_leased = change.lease().is_some();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut held = Held::<N>::lock(&self.buckets, rest.iter().map(|(_, spot)| spot.bucket));
            if all.len() > 1 && rest.len() == all.len() {
                held.fetch(rest.iter().map(|(_, spot)| spot.hash));
                if let Change::Destroy(_) = change {
                    held.fetch_last(&self.hash);
                }
            }
            let mut made: SmallVec<[Made; N]> = SmallVec::new();
            let mut results: SmallVec<[(Creation, Lsn); N]> = SmallVec::new();
            let mut misfits: SmallVec<[u32; N]> = SmallVec::new();
            let mut failed = None;
            for (nth, (session, spot)) in rest.iter().enumerate() {
                let bucket = held.bucket(nth);
                if matches!(change, Change::Create(..)) && bucket.need(is_leased).is_some() {
                    misfits.push(spot.bucket);
                    break;
                }
                let done = match change {
                    Change::Create(lease, takeover) => self.create_in(bucket, *spot, *session, lease, takeover),
                    Change::Destroy(lease) => Ok(self.destroy_in(bucket, *spot, *session, lease)),
                };
                match done {
                    Ok(Done::Changed(event)) => {
                        made.push(Made::new(nth, spot.bucket, event));
                        let created = !matches!(event.change, SessionChange::Moved { .. });
                        results.push((Creation { created, lease: event.lease }, Lsn(0)));
                        // Grown now, for the next session: it would interrupt its whole group to wait for the room.
                        if bucket.need(is_leased).is_some() {
                            misfits.push(spot.bucket);
                        }
                    }
                    Ok(Done::Unchanged(lease, lsn)) => {
                        // Read while the bucket is locked, so that the answer is true at that place.
                        places.add(self.newest_place(spot.bucket));
                        results.push((Creation { created: false, lease }, lsn));
                    }
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            let recorded = |made: &Made, lsn| {
                self.note(held.bucket(made.nth), made.session(), lsn);
                results[made.nth].1 = lsn;
            };
            self.append(&made, Some(places), recorded);
            drop(held);
            rest = &rest[results.len()..];
            results.into_iter().for_each(|(changed, lsn)| push(changed, lsn));
            misfits.iter().for_each(|bucket| self.fit(&mut self.buckets[*bucket as usize].lock(), is_leased));
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Creates a session in its bucket, which must need no room.
    fn create_in(
        &self,
        bucket: &mut Bucket,
        spot: Spot,
        session: SessionKey,
        lease: Option<(LeaseId, &Lease)>,
        takeover: Takeover,
    ) -> Result<Done, StorageError> {
        let too_many = || StorageError::TooManySessions { limit: self.max_sessions };
        let slot = match lease {
            Some((id, lease)) => match self.leases.state(lease) {
                LeaseState::Live => lease.slot,
                LeaseState::Lingers => return Err(StorageError::LeaseLingers(id)),
                LeaseState::Ended => {
                    // Takes the lock of the leases, so that the end is recorded when this returns. The caller then
                    // waits for that record.
                    let _ = self.leases.end_of(id);
                    return Err(StorageError::UnknownLease(id));
                }
            },
            None => 0,
        };
        if let Some(place) = bucket.find(spot.hash, &session) {
            let held = bucket.lease(place);
            let Some((lease, _)) = lease.filter(|_| held != slot && self.may_take(held, takeover)) else {
                let (lease, lsn) = self.lease_at(bucket, place);
                return Ok(Done::Unchanged(lease, lsn.max(bucket.recorded(&session))));
            };
            let previous = self.leases.id(held);
            bucket.set_lease(place, slot);
            self.leases.slots.leave(held, 1);
            self.leases.slots.enter(slot);
            return Ok(Done::Changed(SessionEvent::moved(session, lease, previous)));
        }
        // Counted before the insertion, so that two buckets cannot both take the last free place.
        let counted = self
            .session_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.max_sessions).then_some(n + 1));
        counted.map_err(|_| too_many())?;
        if !bucket.insert(spot.hash, session, slot, &self.hash) {
            self.session_count.fetch_sub(1, Ordering::Relaxed);
            return Err(too_many());
        }
        self.leases.slots.enter(slot);
        Ok(Done::Changed(SessionEvent::created(session, lease.map(|(id, _)| id))))
    }

    /// Returns whether a session may be taken from the lease in slot `held`.
    fn may_take(&self, held: LeaseSlot, takeover: Takeover) -> bool {
        match takeover {
            Takeover::Always => true,
            Takeover::OnlyFrom(from) => !self.leases.slots.protects(held) || self.leases.id(held) == from,
        }
    }

    fn destroy_in(&self, bucket: &mut Bucket, spot: Spot, session: SessionKey, lease: Option<&Lease>) -> Done {
        let Some(place) = bucket.find(spot.hash, &session) else {
            return Done::Unchanged(None, bucket.recorded(&session));
        };
        // Checked under the bucket's lock: once a lease has ended, its slot may be reused.
        if let Some(lease) = lease {
            if self.leases.state(lease) == LeaseState::Ended {
                return Done::Unchanged(None, self.leases.end_of(lease.id));
            }
            if bucket.lease(place) != lease.slot {
                return Done::Unchanged(None, bucket.recorded(&session));
            }
        }
        let held = bucket.lease(place);
        let under = self.leases.id(held);
        let reason = if lease.is_some() { DestroyReason::Released } else { DestroyReason::Requested };
        bucket.remove(spot.hash, place, &self.hash);
        self.leases.slots.leave(held, 1);
        self.session_count.fetch_sub(1, Ordering::Relaxed);
        Done::Changed(SessionEvent::destroyed(session, reason, under))
    }

    /// Appends changes to the log, and records each in the journal at the same place. Calls `recorded` with each
    /// record. `places` gets the last place in each partition. The buckets of the changes must still be locked.
    ///
    /// All threads contend for the log. It is therefore locked once for a whole group, after all other work is done.
    pub(super) fn append(&self, made: &[Made], mut places: Option<&mut Places>, mut recorded: impl FnMut(&Made, Lsn)) {
        let partition = |made: &Made| self.partition_of(made.bucket);
        for made in made.chunk_by(|one, next| partition(one) == partition(next)) {
            // Only one partition's log is locked at a time, so two threads cannot deadlock here.
            let partition = partition(&made[0]);
            let mut log = self.logs[partition as usize].appending();
            for made in made {
                log.append(made.event);
                if let Some(journal) = &self.journal {
                    recorded(made, journal.record(Record::Event(made.event)));
                }
            }
            if let Some(places) = &mut places {
                places.add(Place { partition, position: log.newest() });
            }
        }
    }

    /// Notes in its bucket the record of a session's last change.
    pub(super) fn note(&self, bucket: &mut Bucket, session: SessionKey, lsn: Lsn) {
        if let Some(journal) = &self.journal {
            bucket.note(session, lsn, |lsn| journal.is_durable(lsn));
        }
    }
}
