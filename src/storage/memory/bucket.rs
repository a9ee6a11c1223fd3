//! One bucket of the set: a small hash table that wastes little.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::hash::SessionHasher;
use crate::{session::SessionKey, storage::journal::Lsn};

/// No bucket holds more, because the table's entries are 16-bit places.
const MAX_SESSIONS: usize = 1 << 16;

/// A bucket of no more room than this keeps it.
const WORTH_SHRINKING: usize = 32;

/// What a bucket keeps of the room that a burst of changes took.
const ROOM_FOR_RECENT: usize = 16;

/// Names a lease within the process; 0 for none.
pub(super) type LeaseSlot = u32;

/// The sessions lie side by side in a vector, and the table holds only their 16-bit places in it. A table is between 44%
/// and 87% full, so its entries must be small. The vectors grow by an eighth; those of few sessions by 64, or twofold, because to
/// grow interrupts a batch.
///
/// A bucket never asks for memory by itself: it [needs](Self::need) a [`Room`], which is made while its lock is not held. The
/// kernel may take milliseconds to hand out memory that was not used before.
#[derive(Clone, Default)]
pub(super) struct Bucket {
    sessions: Vec<SessionKey>,
    /// The lease of each session; empty while none was ever under one.
    leases: Vec<LeaseSlot>,
    places: HashTable<u16>,
    /// The last changes, with the records of them: they may not be on disk yet. Empty where nothing is recorded.
    recent: VecDeque<(SessionKey, Lsn)>,
}

/// What a bucket is to move into, for more or for fewer sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    sessions: usize,
    /// How many the table is made for, where it is to be another.
    places: Option<usize>,
    has_leases: bool,
}

/// Memory that has been touched and is empty.
#[must_use = "to be freed when no lock is held"]
pub(super) struct Room {
    sessions: Vec<SessionKey>,
    leases: Vec<LeaseSlot>,
    places: Option<HashTable<u16>>,
}

impl Need {
    pub(super) fn make(self) -> Room {
        Room {
            sessions: touched(self.sessions, SessionKey::new(0, 0)),
            leases: touched(if self.has_leases { self.sessions } else { 0 }, 0),
            places: self.places.map(HashTable::with_capacity),
        }
    }
}

fn touched<T: Clone>(capacity: usize, value: T) -> Vec<T> {
    let mut vector = Vec::with_capacity(capacity);
    vector.resize(capacity, value);
    vector.clear();
    vector
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

    /// Where the last session is: it is looked for by a removal, whose place it takes.
    pub(super) fn find_last(&self, hasher: &SessionHasher) -> Option<usize> {
        self.sessions.last().and_then(|session| self.find(hasher.within(session), session))
    }

    pub(super) fn lease(&self, place: usize) -> LeaseSlot {
        self.leases.get(place).copied().unwrap_or(0)
    }

    /// Puts the session at `place` under a lease. The bucket must have room for leases.
    pub(super) fn set_lease(&mut self, place: usize, lease: LeaseSlot) {
        // Within the capacity that its room gave it.
        self.leases.resize(self.sessions.len(), 0);
        self.leases[place] = lease;
    }

    /// The room that it needs so that one more session, under a lease or not, can be inserted, or because it has far more than
    /// it uses. None when it is well as it is, or as large as it may be.
    pub(super) fn need(&self, is_leased: bool) -> Option<Need> {
        let (len, capacity) = (self.sessions.len(), self.sessions.capacity());
        let has_leases = is_leased || self.has_leases();
        let is_full = len == capacity && len < MAX_SESSIONS;
        let is_wasteful = capacity > WORTH_SHRINKING && len < capacity / 4;
        let sessions = match (is_full, is_wasteful) {
            (true, _) => (len + (len / 8).max(len.clamp(8, 64))).min(MAX_SESSIONS),
            (_, true) => (len * 2).max(WORTH_SHRINKING),
            _ => capacity,
        };
        let is_table_full = self.places.capacity() <= len && len < MAX_SESSIONS;
        let places = if is_wasteful {
            Some(sessions)
        } else if is_table_full {
            // Of the same size when it is what was removed that fills it, and twice the size else.
            let most = self.places.num_buckets() / 8 * 7;
            Some(if len < most / 2 { most } else { most + 1 })
        } else {
            None
        };
        let lacks_leases = has_leases && self.leases.capacity() < capacity;
        (is_full || is_wasteful || is_table_full || lacks_leases).then_some(Need { sessions, places, has_leases })
    }

    /// The room that it needs for so many sessions in all.
    pub(super) fn need_for(&self, sessions: usize, has_leases: bool) -> Need {
        Need { sessions, places: Some(sessions), has_leases: has_leases || self.has_leases() }
    }

    fn has_leases(&self) -> bool {
        self.leases.capacity() > 0
    }

    /// Moves into `room` if it is large enough, and gives back what is not used now.
    pub(super) fn move_into(&mut self, room: Room, hasher: &SessionHasher) -> Room {
        // It may have grown since it was asked what it needs.
        if room.sessions.capacity() < self.sessions.len()
            || room.places.as_ref().is_some_and(|places| places.capacity() < self.sessions.len())
            || (self.has_leases() && room.leases.capacity() < self.sessions.len())
        {
            return room;
        }
        let Room { mut sessions, mut leases, places } = room;
        sessions.extend_from_slice(&self.sessions);
        leases.extend_from_slice(&self.leases);
        std::mem::swap(&mut sessions, &mut self.sessions);
        std::mem::swap(&mut leases, &mut self.leases);
        let old = places.map(|mut places| {
            for (place, session) in self.sessions.iter().enumerate() {
                let hash = |place: &u16| hasher.within(&self.sessions[*place as usize]);
                places.insert_unique(hasher.within(session), place as u16, hash);
            }
            std::mem::replace(&mut self.places, places)
        });
        Room { sessions, leases, places: old }
    }

    /// Inserts a session that is not there. False when the bucket is full. It must [need](Self::need) nothing.
    pub(super) fn insert(&mut self, hash: u64, session: SessionKey, lease: LeaseSlot, hasher: &SessionHasher) -> bool {
        let place = self.sessions.len();
        if place == MAX_SESSIONS {
            return false;
        }
        self.sessions.push(session);
        if lease != 0 || !self.leases.is_empty() {
            self.set_lease(place, lease);
        }
        let Self { sessions, places, .. } = self;
        places.insert_unique(hash, place as u16, |&place| hasher.within(&sessions[place as usize]));
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
            if let Some(entry) = places.find_mut(hasher.within(moved), |&other| other as usize == old_place) {
                *entry = place as u16;
            }
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
                self.remove(hasher.within(&session), place, hasher);
                taken.push(session);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// Growth is what a bucket's lock is held for longest. It is timed as the processor time of this thread, the least of some
    /// tries: what else the machine does is not the bucket's.
    #[test]
    #[cfg_attr(debug_assertions, ignore = "a bound on time is for a release build: cargo test --release --lib growth")]
    fn no_growth_holds_the_lock_for_two_milliseconds() {
        let hasher = SessionHasher::random();
        let mut longest = Duration::ZERO;
        let mut bucket = Bucket::default();
        for n in 0..MAX_SESSIONS {
            if let Some(need) = bucket.need(true) {
                let least = (0..5).map(|_| {
                    let mut copy = bucket.clone();
                    let room = need.make();
                    let began = clock_gettime(ClockId::ThreadCPUTime);
                    let unused = copy.move_into(room, &hasher);
                    let took = clock_gettime(ClockId::ThreadCPUTime) - began;
                    drop(unused);
                    took
                });
                let least = Duration::try_from(least.min().unwrap()).unwrap();
                if least > longest {
                    longest = least;
                    println!("{n} sessions: {least:?}");
                }
                drop(bucket.move_into(need.make(), &hasher));
            }
            let session = SessionKey::new(1, n as i64);
            assert!(bucket.insert(hasher.within(&session), session, 1, &hasher));
        }
        assert!(longest < Duration::from_millis(2), "{longest:?}");
    }

    fn make_room(bucket: &mut Bucket, is_leased: bool, hasher: &SessionHasher) {
        if let Some(need) = bucket.need(is_leased) {
            drop(bucket.move_into(need.make(), hasher));
        }
        assert!(bucket.need(is_leased).is_none(), "{:?}", bucket.need(is_leased));
    }

    #[test]
    fn a_bucket_finds_what_it_holds_through_growth_removal_and_shrinking() {
        let hasher = SessionHasher::random();
        let key = |n: i64| SessionKey::new(n % 3, n);
        let hash = |n: i64| hasher.within(&key(n));
        let all = MAX_SESSIONS as i64;
        let mut bucket = Bucket::default();
        for n in 0..all {
            // The first thousand come before any lease, so that the column of leases is made late.
            let lease = if n < 1000 { 0 } else { n as u32 % 5 };
            make_room(&mut bucket, lease != 0, &hasher);
            let capacity = bucket.sessions.capacity();
            assert!(bucket.insert(hash(n), key(n), lease, &hasher));
            assert_eq!(bucket.sessions.capacity(), capacity, "what needs nothing does not grow");
        }
        assert!(!bucket.insert(hash(-1), key(-1), 0, &hasher), "a full bucket refuses");
        let mut left: Vec<i64> = (0..all).filter(|n| n % 100 == 0 || n % 5 == 2).collect();
        for n in (0..all).filter(|n| left.binary_search(n).is_err()) {
            let place = bucket.find(hash(n), &key(n)).unwrap();
            bucket.remove(hash(n), place, &hasher);
            assert_eq!(bucket.find(hash(n), &key(n)), None);
            make_room(&mut bucket, false, &hasher);
        }
        let mut taken = Vec::new();
        loop {
            let some = bucket.take_leased(2, 1000, &hasher);
            make_room(&mut bucket, false, &hasher);
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
