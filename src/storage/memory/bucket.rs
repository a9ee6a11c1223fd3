//! One bucket of the set: a small hash table that wastes little.

use std::{collections::VecDeque, hash::BuildHasher};

use hashbrown::HashTable;

use super::hash::SessionHasher;
use crate::{session::SessionKey, storage::journal::Lsn};

/// No bucket holds more, because the table's entries are 16-bit places.
const MAX_SESSIONS: usize = 1 << 16;

/// What a bucket keeps of the room that a burst of changes took.
const ROOM_FOR_RECENT: usize = 16;

/// Names a lease within the process; 0 for none.
pub(super) type LeaseSlot = u32;

/// The sessions lie side by side in a vector, and the table holds only their 16-bit places in it. A table is between 44%
/// and 87% full, so its entries must be small; the vectors grow by a sixteenth.
#[derive(Default)]
pub(super) struct Bucket {
    sessions: Vec<SessionKey>,
    /// The lease of each session; empty while none was ever under one.
    leases: Vec<LeaseSlot>,
    places: HashTable<u16>,
    /// The last changes, with the records of them: they may not be on disk yet. Empty where nothing is recorded.
    recent: VecDeque<(SessionKey, Lsn)>,
}

impl Bucket {
    /// Notes that a session has changed, and forgets changes that `is_durable`.
    pub(super) fn note(&mut self, session: SessionKey, lsn: Lsn, is_durable: impl Fn(Lsn) -> bool) {
        while self.recent.front().is_some_and(|(_, lsn)| is_durable(*lsn)) {
            self.recent.pop_front();
        }
        if self.recent.is_empty() && self.recent.capacity() > ROOM_FOR_RECENT {
            self.recent.shrink_to(ROOM_FOR_RECENT);
        }
        self.recent.push_back((session, lsn));
    }

    /// The record that `session` is as it is, where that may not be on disk yet; 0 otherwise.
    pub(super) fn recorded(&self, session: &SessionKey) -> Lsn {
        self.recent.iter().rev().find(|(changed, _)| changed == session).map_or(Lsn(0), |(_, lsn)| *lsn)
    }

    /// Each session with its lease.
    pub(super) fn leased(&self) -> impl Iterator<Item = (SessionKey, LeaseSlot)> {
        self.sessions.iter().enumerate().map(|(place, session)| (*session, self.lease(place)))
    }

    pub(super) fn sessions(&self) -> &[SessionKey] {
        &self.sessions
    }

    /// Where a session is, until the bucket changes.
    pub(super) fn find(&self, hash: u64, session: &SessionKey) -> Option<usize> {
        self.places.find(hash, |&place| self.sessions[place as usize] == *session).map(|&place| place as usize)
    }

    pub(super) fn lease(&self, place: usize) -> LeaseSlot {
        self.leases.get(place).copied().unwrap_or(0)
    }

    pub(super) fn set_lease(&mut self, place: usize, lease: LeaseSlot) {
        if self.leases.is_empty() {
            self.leases.reserve_exact(self.sessions.capacity());
            self.leases.resize(self.sessions.len(), 0);
        }
        self.leases[place] = lease;
    }

    /// Makes room for so many more sessions.
    pub(super) fn reserve(&mut self, more: usize, hasher: &SessionHasher) {
        let Self { sessions, places, .. } = self;
        sessions.reserve_exact(more);
        places.reserve(more, |&place| hasher.hash_one(sessions[place as usize]));
    }

    /// Inserts a session that is not there. False when the bucket is full.
    pub(super) fn insert(&mut self, hash: u64, session: SessionKey, lease: LeaseSlot, hasher: &SessionHasher) -> bool {
        let Self { sessions, leases, places, .. } = self;
        if sessions.len() == MAX_SESSIONS {
            return false;
        }
        let place = sessions.len();
        push(sessions, session);
        if !leases.is_empty() {
            push(leases, 0);
        }
        places.insert_unique(hash, place as u16, |&place| hasher.hash_one(sessions[place as usize]));
        if lease != 0 {
            self.set_lease(place, lease);
        }
        true
    }

    /// Removes the session at `place`.
    pub(super) fn remove(&mut self, hash: u64, place: usize, hasher: &SessionHasher) {
        let Self { sessions, leases, places, .. } = self;
        if let Ok(entry) = places.find_entry(hash, |&other| other as usize == place) {
            entry.remove();
        }
        sessions.swap_remove(place);
        if !leases.is_empty() {
            leases.swap_remove(place);
        }
        // The last session has taken the place of the one removed; its entry still says where it was.
        if let Some(moved) = sessions.get(place) {
            let old_place = sessions.len();
            if let Some(entry) = places.find_mut(hasher.hash_one(moved), |&other| other as usize == old_place) {
                *entry = place as u16;
            }
        }
        if sessions.len() < sessions.capacity() / 4 {
            let room = sessions.len() * 2;
            sessions.shrink_to(room);
            leases.shrink_to(room);
            places.shrink_to(room, |&place| hasher.hash_one(sessions[place as usize]));
        }
    }

    /// Removes some sessions under `lease`, at most `limit`; fewer only when no more are there.
    pub(super) fn take_leased(&mut self, lease: LeaseSlot, limit: usize, hasher: &SessionHasher) -> Vec<SessionKey> {
        let mut taken = Vec::new();
        // From the end, where the session that fills a gap has been looked at already.
        for place in (0..self.leases.len()).rev() {
            if taken.len() == limit {
                break;
            }
            if self.leases[place] == lease {
                let session = self.sessions[place];
                self.remove(hasher.hash_one(session), place, hasher);
                taken.push(session);
            }
        }
        taken
    }
}

fn push<T>(vector: &mut Vec<T>, value: T) {
    if vector.len() == vector.capacity() {
        vector.reserve_exact((vector.len() / 16).max(8));
    }
    vector.push(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_finds_what_it_holds_through_growth_removal_and_shrinking() {
        let hasher = SessionHasher::random();
        let key = |n: i64| SessionKey::new(n % 3, n);
        let hash = |n: i64| hasher.hash_one(key(n));
        let all = MAX_SESSIONS as i64;
        let mut bucket = Bucket::default();
        for n in 0..all {
            // The first thousand come before any lease, so that the column of leases is made late.
            let lease = if n < 1000 { 0 } else { n as u32 % 5 };
            assert!(bucket.insert(hash(n), key(n), lease, &hasher));
        }
        assert!(!bucket.insert(hash(-1), key(-1), 0, &hasher), "a full bucket refuses");
        let mut left: Vec<i64> = (0..all).filter(|n| n % 100 == 0 || n % 5 == 2).collect();
        for n in (0..all).filter(|n| left.binary_search(n).is_err()) {
            let place = bucket.find(hash(n), &key(n)).unwrap();
            bucket.remove(hash(n), place, &hasher);
            assert_eq!(bucket.find(hash(n), &key(n)), None);
        }
        let mut taken = Vec::new();
        loop {
            let some = bucket.take_leased(2, 1000, &hasher);
            taken.extend(some.iter().map(|session| session.session_id.0));
            if some.len() < 1000 {
                break;
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, (1000..all).filter(|n| n % 5 == 2).collect::<Vec<_>>());
        left.retain(|n| taken.binary_search(n).is_err());
        assert_eq!(bucket.sessions().len(), left.len());
        for n in left {
            let place = bucket.find(hash(n), &key(n)).unwrap();
            assert_eq!(bucket.lease(place), if n < 1000 { 0 } else { n as u32 % 5 });
        }
        assert!(bucket.sessions.capacity() < MAX_SESSIONS / 10, "room is given back");
    }
}
