//! A small, compact hash table of sessions and their leases.
//!
//! The memory storage and the client's mirror both keep their sessions in a few thousand of these tables, so that no
//! table of millions of entries is ever rehashed at once.

mod column;
mod hash;

use hashbrown::HashTable;

use self::column::{Column, Segments};
pub(crate) use self::hash::SessionHasher;
#[cfg(feature = "file")]
pub(crate) use self::hash::random_key;
use crate::session::SessionKey;

/// The most sessions in a table: its entries are 16-bit places.
const MAX_SESSIONS: usize = 1 << 16;

/// The number of entries in the smallest table: a tenth of the size of the column of sessions next to it.
const SMALLEST_TABLE: usize = 64;

/// Identifies a lease within the process; 0 means no lease.
pub(crate) type LeaseSlot = u32;

/// A table of sessions.
///
/// The sessions lie next to each other in a column, and the hash table holds their 16-bit places in it. The hash table's
/// entries must be small, because it is only 44% to 87% full.
///
/// Except for the list of its segments, a table never allocates memory itself. It reports what it [needs](Self::need),
/// and is given a [`Room`] that was allocated while it was unlocked. The kernel may take milliseconds to hand out new
/// memory.
#[derive(Clone, Default)]
pub(crate) struct Table {
    sessions: Column<SessionKey>,
    /// The lease of each session; empty until a session is first put under a lease.
    leases: Column<LeaseSlot>,
    places: HashTable<u16>,
}

/// The memory that a table needs to hold `len` sessions. It returns what it has far beyond that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    len: usize,
    /// Missing segments of sessions, and below of leases.
    sessions: usize,
    leases: usize,
    /// The capacity of the new table, if it needs one.
    places: Option<usize>,
}

/// Allocated and touched memory for a table, or memory that the table no longer uses.
#[must_use = "free it while no lock is held"]
pub(crate) struct Room {
    len: usize,
    sessions: Segments<SessionKey>,
    leases: Segments<LeaseSlot>,
    places: Option<HashTable<u16>>,
}

impl Need {
    pub(crate) fn make(self) -> Room {
        Room {
            len: self.len,
            sessions: Segments::new(self.sessions),
            leases: Segments::new(self.leases),
            places: self.places.map(|places| HashTable::with_capacity(places.max(SMALLEST_TABLE / 8 * 7))),
        }
    }
}

impl Table {
    /// Returns each session with its lease.
    pub(crate) fn leased(&self) -> impl Iterator<Item = (SessionKey, LeaseSlot)> {
        let sessions = self.sessions().flatten();
        sessions.enumerate().map(|(place, session)| (*session, self.lease(place)))
    }

    /// Returns the sessions, segment by segment.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &[SessionKey]> {
        self.sessions.runs()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the place of a session. It is valid until the table changes.
    pub(crate) fn find(&self, hash: u64, session: &SessionKey) -> Option<usize> {
        let is_it = |place: &u16| self.sessions.get((*place).into()) == Some(*session);
        self.places.find(hash, is_it).map(|&place| place.into())
    }

    pub(crate) fn lease(&self, place: usize) -> LeaseSlot {
        self.leases.get(place).unwrap_or(0)
    }

    /// Puts the session at `place` under a lease. The table must have room for leases.
    pub(crate) fn set_lease(&mut self, place: usize, lease: LeaseSlot) {
        while self.leases.len() < self.len() {
            self.leases.push(0);
        }
        self.leases.set(place, lease);
    }

    /// Returns the memory that the table needs so that one more session can be inserted, under a lease or not. Also
    /// returns a need if the table has far more memory than it uses. `None` if nothing needs to change, or the table
    /// cannot grow further.
    pub(crate) fn need(&self, is_leased: bool) -> Option<Need> {
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

    /// Returns the memory that the table needs for `more` sessions.
    pub(crate) fn need_for(&self, more: usize, is_leased: bool) -> Need {
        let len = (self.len() + more).min(MAX_SESSIONS);
        self.need_of(len, is_leased, (self.places.capacity() < len).then_some(len))
    }

    fn need_of(&self, len: usize, is_leased: bool, places: Option<usize>) -> Need {
        let has_leases = is_leased || self.leases.capacity() > 0;
        let leases = if has_leases { self.leases.missing(len) } else { 0 };
        Need { len, sessions: self.sessions.missing(len), leases, places }
    }

    /// Moves into `room` as far as it is still useful, and returns the memory that is no longer used.
    pub(crate) fn move_into(&mut self, mut room: Room, hasher: &SessionHasher) -> Room {
        // The table may have grown since the room was sized.
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

    /// Inserts a session that is not in the table, which must [need](Self::need) nothing. Returns false if the table
    /// is full.
    pub(crate) fn insert(&mut self, hash: u64, session: SessionKey, lease: LeaseSlot, hasher: &SessionHasher) -> bool {
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
    pub(crate) fn remove(&mut self, hash: u64, place: usize, hasher: &SessionHasher) {
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
}

/// What only a storage needs.
#[cfg(feature = "subject")]
impl Table {
    /// Returns the place of some session with this hash, which may be another one.
    pub(crate) fn guess(&self, hash: u64) -> Option<usize> {
        self.places.find(hash, |_| true).map(|&place| place.into())
    }

    /// Returns the last session. It moves to the place of a session that is removed.
    pub(crate) fn last(&self) -> Option<SessionKey> {
        self.sessions.get(self.len().checked_sub(1)?)
    }

    pub(crate) fn session(&self, place: usize) -> Option<SessionKey> {
        self.sessions.get(place)
    }

    /// Removes sessions under `lease`, at most `limit`, and returns them. Fewer than `limit` mean that none remain.
    pub(crate) fn take_leased(&mut self, lease: LeaseSlot, limit: usize, hasher: &SessionHasher) -> Vec<SessionKey> {
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

    /// Growth is the longest operation under a table's lock. The test takes the processor time of this thread, and the
    /// minimum of five attempts, to leave out what else the machine does.
    #[test]
    #[cfg_attr(debug_assertions, ignore = "a bound on time is for a release build: cargo test --release --lib growth")]
    fn growth_holds_the_lock_for_less_than_two_milliseconds() {
        let hasher = SessionHasher::random();
        let mut longest = Duration::ZERO;
        let mut table = Table::default();
        for n in 0..MAX_SESSIONS {
            if let Some(need) = table.need(true) {
                let least = (0..5).map(|_| {
                    let mut copy = table.clone();
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
                drop(table.move_into(need.make(), &hasher));
            }
            let session = SessionKey::new(1, n as i64);
            assert!(table.insert(hasher.within(&session), session, 1, &hasher));
        }
        assert!(longest < Duration::from_millis(2), "{longest:?}");
    }

    fn make_room(table: &mut Table, is_leased: bool, hasher: &SessionHasher) {
        if let Some(need) = table.need(is_leased) {
            drop(table.move_into(need.make(), hasher));
        }
        assert!(table.need(is_leased).is_none(), "{:?}", table.need(is_leased));
    }

    #[test]
    fn room_for_many_sessions_is_kept_until_they_are_inserted() {
        let hasher = SessionHasher::random();
        for more in [1, 128, 129, 1000, MAX_SESSIONS] {
            let mut table = Table::default();
            drop(table.move_into(table.need_for(more, true).make(), &hasher));
            let capacity = table.sessions.capacity();
            for n in 0..more {
                let session = SessionKey::new(1, n as i64);
                assert!(table.insert(hasher.within(&session), session, 1, &hasher));
            }
            assert_eq!(table.sessions.capacity(), capacity);
        }
    }

    /// Room is allocated while the table is unlocked, so the table may have changed by the time it gets the room.
    #[test]
    fn late_or_unneeded_room_changes_no_session() {
        let hasher = SessionHasher::random();
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut table = Table::default();
            let mut model = HashMap::new();
            let mut late = Vec::new();
            for step in 0..10_000 {
                let session = SessionKey::new(1, random.i64(0..1500));
                let hash = hasher.within(&session);
                // The first sessions are under no lease. The table grows, then shrinks, and grows again.
                let lease = if step < 1000 { 0 } else { random.u32(0..3) };
                let is_create = random.u32(0..100) < if step / 4000 % 2 == 0 { 80 } else { 10 };
                let found = table.find(hash, &session);
                assert_eq!(found.map(|place| table.lease(place)), model.get(&session).copied());
                match found {
                    None if is_create => {
                        make_room(&mut table, lease != 0, &hasher);
                        assert!(table.insert(hash, session, lease, &hasher));
                        model.insert(session, lease);
                    }
                    Some(place) if !is_create => {
                        table.remove(hash, place, &hasher);
                        model.remove(&session);
                    }
                    _ => {}
                }
                match random.u32(0..40) {
                    0 => late.push(table.need_for(random.usize(0..600), random.bool())),
                    1 => late.extend(table.need(random.bool())),
                    2 if !late.is_empty() => {
                        let need: Need = late.swap_remove(random.usize(..late.len()));
                        drop(table.move_into(need.make(), &hasher));
                    }
                    _ => {}
                }
            }
            assert_eq!(table.leased().collect::<HashMap<_, _>>(), model);
        }
    }

    #[test]
    fn table_finds_its_sessions_after_growing_removing_and_shrinking() {
        let hasher = SessionHasher::random();
        let key = |n: i64| SessionKey::new(n % 3, n);
        let hash = |n: i64| hasher.within(&key(n));
        let all = MAX_SESSIONS as i64;
        let mut table = Table::default();
        for n in 0..all {
            // The first thousand sessions are under no lease, so that the column of leases is added late.
            let lease = if n < 1000 { 0 } else { n as u32 % 5 };
            make_room(&mut table, lease != 0, &hasher);
            let capacity = table.sessions.capacity();
            assert!(table.insert(hash(n), key(n), lease, &hasher));
            assert_eq!(table.sessions.capacity(), capacity, "a table that needs nothing does not grow");
        }
        assert!(!table.insert(hash(-1), key(-1), 0, &hasher), "a full table refuses");
        let mut left: Vec<i64> = (0..all).filter(|n| n % 100 == 0 || n % 5 == 2).collect();
        for n in (0..all).filter(|n| left.binary_search(n).is_err()) {
            let place = table.find(hash(n), &key(n)).unwrap();
            table.remove(hash(n), place, &hasher);
            assert_eq!(table.find(hash(n), &key(n)), None);
            make_room(&mut table, false, &hasher);
        }
        let mut taken = Vec::new();
        loop {
            let some = table.take_leased(2, 1000, &hasher);
            make_room(&mut table, false, &hasher);
            taken.extend(some.iter().map(|session| session.session_id.0));
            if some.len() < 1000 {
                break;
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, (1000..all).filter(|n| n % 5 == 2).collect::<Vec<_>>());
        left.retain(|n| taken.binary_search(n).is_err());
        assert_eq!(table.len(), left.len());
        for n in left {
            let place = table.find(hash(n), &key(n)).unwrap();
            assert_eq!(table.lease(place), if n < 1000 { 0 } else { n as u32 % 5 });
        }
        assert!(table.sessions.capacity() < MAX_SESSIONS / 10, "the column returns its memory");
        assert!(table.places.capacity() < MAX_SESSIONS / 10, "the table shrinks too");
    }
}
