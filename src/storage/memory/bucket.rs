//! A bucket of the set: a small, compact hash table.

use std::collections::VecDeque;

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::{
    column::{Column, Segments},
    hash::SessionHasher,
};
use crate::{session::SessionKey, storage::journal::Lsn};

/// The most sessions in a bucket: the table's entries are 16-bit places.
const MAX_SESSIONS: usize = 1 << 16;

/// The number of entries in the smallest table: a tenth of the size of the column of sessions next to it.
const SMALLEST_TABLE: usize = 64;

/// The capacity of the list of recent changes that remains after a burst.
const ROOM_FOR_RECENT: usize = 16;

/// Identifies a lease within the process; 0 means no lease.
pub(super) type LeaseSlot = u32;

/// A bucket of sessions.
///
/// The sessions lie next to each other in a column, and the table holds their 16-bit places in it. The table's entries
/// must be small, because it is only 44% to 87% full.
///
/// Except for the list of its segments, a bucket never allocates memory itself. It reports what it [needs](Self::need),
/// and is given a [`Room`] that was allocated while it was unlocked. The kernel may take milliseconds to hand out new
/// memory.
#[derive(Clone, Default)]
pub(super) struct Bucket {
    sessions: Column<SessionKey>,
    /// The lease of each session; empty until a session is first put under a lease.
    leases: Column<LeaseSlot>,
    places: HashTable<u16>,
    /// The latest changes and their records, which may not be on disk yet. `None` until one is recorded.
    #[expect(clippy::box_collection, reason = "a bucket is small without it")]
    recent: Option<Box<VecDeque<(SessionKey, Lsn)>>>,
}

// With its lock, a bucket fits in two cache lines.
const _: () = assert!(size_of::<Mutex<Bucket>>() <= 128);

/// The memory that a bucket needs to hold `len` sessions. It returns what it has far beyond that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    len: usize,
    /// Missing segments of sessions, and below of leases.
    sessions: usize,
    leases: usize,
    /// The capacity of the new table, if it needs one.
    places: Option<usize>,
}

/// Allocated and touched memory for a bucket, or memory that the bucket no longer uses.
#[must_use = "free it while no lock is held"]
pub(super) struct Room {
    len: usize,
    sessions: Segments<SessionKey>,
    leases: Segments<LeaseSlot>,
    places: Option<HashTable<u16>>,
}

impl Need {
    pub(super) fn make(self) -> Room {
        Room {
            len: self.len,
            sessions: Segments::new(self.sessions),
            leases: Segments::new(self.leases),
            places: self.places.map(|places| HashTable::with_capacity(places.max(SMALLEST_TABLE / 8 * 7))),
        }
    }
}

impl Bucket {
    /// Records that a session has changed, and forgets earlier changes for which `is_durable` returns true.
    pub(super) fn note(&mut self, session: SessionKey, lsn: Lsn, is_durable: impl Fn(Lsn) -> bool) {
        let recent = self.recent.get_or_insert_default();
        while recent.front().is_some_and(|(_, lsn)| is_durable(*lsn)) {
            recent.pop_front();
        }
        if recent.is_empty() && recent.capacity() > ROOM_FOR_RECENT {
            recent.shrink_to(ROOM_FOR_RECENT);
        }
        recent.push_back((session, lsn));
    }

    /// Returns the record of the last change of `session`, if that may not be on disk yet; otherwise 0.
    pub(super) fn recorded(&self, session: &SessionKey) -> Lsn {
        self.recent
            .iter()
            .flat_map(|recent| recent.iter().rev())
            .find(|(changed, _)| changed == session)
            .map_or(Lsn(0), |(_, lsn)| *lsn)
    }

    /// Returns each session with its lease.
    pub(super) fn leased(&self) -> impl Iterator<Item = (SessionKey, LeaseSlot)> {
        let sessions = self.sessions().flatten();
        sessions.enumerate().map(|(place, session)| (*session, self.lease(place)))
    }

    /// Returns the sessions, segment by segment.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &[SessionKey]> {
        self.sessions.runs()
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the place of a session. It is valid until the bucket changes.
    pub(super) fn find(&self, hash: u64, session: &SessionKey) -> Option<usize> {
        let is_it = |place: &u16| self.sessions.get((*place).into()) == Some(*session);
        self.places.find(hash, is_it).map(|&place| place.into())
    }

    /// Returns the place of some session with this hash, which may be another one.
    pub(super) fn guess(&self, hash: u64) -> Option<usize> {
        self.places.find(hash, |_| true).map(|&place| place.into())
    }

    pub(super) fn session(&self, place: usize) -> Option<SessionKey> {
        self.sessions.get(place)
    }

    /// Returns the last session. It moves to the place of a session that is removed.
    pub(super) fn last(&self) -> Option<SessionKey> {
        self.sessions.get(self.len().checked_sub(1)?)
    }

    pub(super) fn lease(&self, place: usize) -> LeaseSlot {
        self.leases.get(place).unwrap_or(0)
    }

    /// Puts the session at `place` under a lease. The bucket must have room for leases.
    pub(super) fn set_lease(&mut self, place: usize, lease: LeaseSlot) {
        while self.leases.len() < self.len() {
            self.leases.push(0);
        }
        self.leases.set(place, lease);
    }

    /// Returns the memory that the bucket needs so that one more session can be inserted, under a lease or not. Also
    /// returns a need if the bucket has far more memory than it uses. `None` if nothing needs to change, or the bucket
    /// cannot grow further.
    pub(super) fn need(&self, is_leased: bool) -> Option<Need> {
        let len = self.len();
        let entries = self.places.num_buckets();
        let places = if entries > SMALLEST_TABLE && len < entries / 8 {
            Some(len * 2)
        } else if self.places.capacity() <= len && len < MAX_SESSIONS {
            // The same size if removed entries fill the table, otherwise twice the size.
            let most = entries / 8 * 7;
            Some(if len < most / 2 { most } else { most + 1 })
        } else {
            None
        };
        let need = self.need_of((len + 1).min(MAX_SESSIONS), is_leased, places);
        let is_wasteful = self.sessions.is_wasteful(need.len) || self.leases.is_wasteful(need.len);
        let is_short = need.sessions > 0 || need.leases > 0 || places.is_some();
        (is_short || is_wasteful).then_some(need)
    }

    /// Returns the memory that the bucket needs for `more` sessions.
    pub(super) fn need_for(&self, more: usize, is_leased: bool) -> Need {
        let len = (self.len() + more).min(MAX_SESSIONS);
        self.need_of(len, is_leased, (self.places.capacity() < len).then_some(len))
    }

    fn need_of(&self, len: usize, is_leased: bool, places: Option<usize>) -> Need {
        let has_leases = is_leased || self.leases.capacity() > 0;
        let leases = if has_leases { self.leases.missing(len) } else { 0 };
        Need { len, sessions: self.sessions.missing(len), leases, places }
    }

    /// Moves into `room` as far as it is still useful, and returns the memory that is no longer used.
    pub(super) fn move_into(&mut self, mut room: Room, hasher: &SessionHasher) -> Room {
        // The bucket may have grown since the room was sized.
        let len = room.len.max(self.len());
        self.sessions.add(&mut room.sessions);
        self.leases.add(&mut room.leases);
        self.sessions.give_back(&mut room.sessions, len);
        self.leases.give_back(&mut room.leases, len);
        if let Some(places) = room.places.as_mut().filter(|places| places.capacity() >= self.sessions.len()) {
            for (place, session) in self.sessions.runs().flatten().enumerate() {
                let hash = |place: &u16| self.sessions.get((*place).into()).map_or(0, |moved| hasher.within(&moved));
                places.insert_unique(hasher.within(session), place as u16, hash);
            }
            std::mem::swap(places, &mut self.places);
        }
        room
    }

    /// Inserts a session that is not in the bucket, which must [need](Self::need) nothing. Returns false if the bucket
    /// is full.
    pub(super) fn insert(&mut self, hash: u64, session: SessionKey, lease: LeaseSlot, hasher: &SessionHasher) -> bool {
        let place = self.len();
        if place == MAX_SESSIONS {
            return false;
        }
        self.sessions.push(session);
        if lease != 0 || self.leases.len() > 0 {
            self.set_lease(place, lease);
        }
        let Self { sessions, places, .. } = self;
        let hash_of = |&place: &u16| sessions.get(place.into()).map_or(0, |session| hasher.within(&session));
        places.insert_unique(hash, place as u16, hash_of);
        true
    }

    /// Removes the session at `place`.
    pub(super) fn remove(&mut self, hash: u64, place: usize, hasher: &SessionHasher) {
        let Self { sessions, leases, places, .. } = self;
        if let Ok(entry) = places.find_entry(hash, |&other| usize::from(other) == place) {
            entry.remove();
        }
        sessions.swap_remove(place);
        if leases.len() > 0 {
            leases.swap_remove(place);
        }
        // The last session has moved into the gap, but its table entry still has the old place.
        if let Some(moved) = sessions.get(place) {
            let old_place = sessions.len();
            if let Some(entry) = places.find_mut(hasher.within(&moved), |&other| usize::from(other) == old_place) {
                *entry = place as u16;
            }
        }
    }

    /// Removes sessions under `lease`, at most `limit`, and returns them. Fewer than `limit` mean that none remain.
    pub(super) fn take_leased(&mut self, lease: LeaseSlot, limit: usize, hasher: &SessionHasher) -> Vec<SessionKey> {
        let mut taken = Vec::new();
        // From the end, so that the session that moves into a gap has been checked already.
        for place in (0..self.leases.len()).rev() {
            if taken.len() == limit {
                break;
            }
            if self.lease(place) == lease
                && let Some(session) = self.sessions.get(place)
            {
                self.remove(hasher.within(&session), place, hasher);
                taken.push(session);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// Growth is the longest operation under a bucket's lock. The test takes the processor time of this thread, and the
    /// minimum of five attempts, to leave out what else the machine does.
    #[test]
    #[cfg_attr(debug_assertions, ignore = "a bound on time is for a release build: cargo test --release --lib growth")]
    fn growth_holds_the_lock_for_less_than_two_milliseconds() {
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
    fn room_for_many_sessions_is_kept_until_they_are_inserted() {
        let hasher = SessionHasher::random();
        for more in [1, 128, 129, 1000, MAX_SESSIONS] {
            let mut bucket = Bucket::default();
            drop(bucket.move_into(bucket.need_for(more, true).make(), &hasher));
            let capacity = bucket.sessions.capacity();
            for n in 0..more {
                let session = SessionKey::new(1, n as i64);
                assert!(bucket.insert(hasher.within(&session), session, 1, &hasher));
            }
            assert_eq!(bucket.sessions.capacity(), capacity);
        }
    }

    /// Room is allocated while the bucket is unlocked, so the bucket may have changed by the time it gets the room.
    #[test]
    fn late_or_unneeded_room_changes_no_session() {
        let hasher = SessionHasher::random();
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bucket = Bucket::default();
            let mut model = HashMap::new();
            let mut late = Vec::new();
            for step in 0..10_000 {
                let session = SessionKey::new(1, random.i64(0..1500));
                let hash = hasher.within(&session);
                // The first sessions are under no lease. The bucket grows, then shrinks, and grows again.
                let lease = if step < 1000 { 0 } else { random.u32(0..3) };
                let is_create = random.u32(0..100) < if step / 4000 % 2 == 0 { 80 } else { 10 };
                let found = bucket.find(hash, &session);
                assert_eq!(found.map(|place| bucket.lease(place)), model.get(&session).copied());
                match found {
                    None if is_create => {
                        make_room(&mut bucket, lease != 0, &hasher);
                        assert!(bucket.insert(hash, session, lease, &hasher));
                        model.insert(session, lease);
                    }
                    Some(place) if !is_create => {
                        bucket.remove(hash, place, &hasher);
                        model.remove(&session);
                    }
                    _ => {}
                }
                match random.u32(0..40) {
                    0 => late.push(bucket.need_for(random.usize(0..600), random.bool())),
                    1 => late.extend(bucket.need(random.bool())),
                    2 if !late.is_empty() => {
                        let need: Need = late.swap_remove(random.usize(..late.len()));
                        drop(bucket.move_into(need.make(), &hasher));
                    }
                    _ => {}
                }
            }
            assert_eq!(bucket.leased().collect::<HashMap<_, _>>(), model);
        }
    }

    #[test]
    fn bucket_finds_its_sessions_after_growing_removing_and_shrinking() {
        let hasher = SessionHasher::random();
        let key = |n: i64| SessionKey::new(n % 3, n);
        let hash = |n: i64| hasher.within(&key(n));
        let all = MAX_SESSIONS as i64;
        let mut bucket = Bucket::default();
        for n in 0..all {
            // The first thousand sessions are under no lease, so that the column of leases is added late.
            let lease = if n < 1000 { 0 } else { n as u32 % 5 };
            make_room(&mut bucket, lease != 0, &hasher);
            let capacity = bucket.sessions.capacity();
            assert!(bucket.insert(hash(n), key(n), lease, &hasher));
            assert_eq!(bucket.sessions.capacity(), capacity, "a bucket that needs nothing does not grow");
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
        assert_eq!(bucket.len(), left.len());
        for n in left {
            let place = bucket.find(hash(n), &key(n)).unwrap();
            assert_eq!(bucket.lease(place), if n < 1000 { 0 } else { n as u32 % 5 });
        }
        assert!(bucket.sessions.capacity() < MAX_SESSIONS / 10, "the column returns its memory");
        assert!(bucket.places.capacity() < MAX_SESSIONS / 10, "the table shrinks too");
    }
}
