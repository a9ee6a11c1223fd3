//! One bucket of the set: a small hash table that wastes little.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::session::SessionKey;

/// No bucket holds more, because the table's entries are 16-bit places.
const MAX_SESSIONS: usize = 1 << 16;

/// The sessions lie side by side in a vector, and the table holds only their 16-bit places in it. A table is between 44%
/// and 87% full, so its entries must be small; the vector grows by a sixteenth.
#[derive(Default)]
pub(super) struct Bucket {
    sessions: Vec<SessionKey>,
    places: HashTable<u16>,
}

impl Bucket {
    pub(super) fn sessions(&self) -> &[SessionKey] {
        &self.sessions
    }

    pub(super) fn contains(&self, hash: u64, session: &SessionKey) -> bool {
        self.places.find(hash, |&place| self.sessions[place as usize] == *session).is_some()
    }

    /// Inserts a session that is not there. False when the bucket is full.
    pub(super) fn insert(&mut self, hash: u64, session: SessionKey, hasher: &RandomState) -> bool {
        let Self { sessions, places } = self;
        if sessions.len() == MAX_SESSIONS {
            return false;
        }
        if sessions.len() == sessions.capacity() {
            sessions.reserve_exact((sessions.len() / 16).max(4));
        }
        let place = sessions.len() as u16;
        sessions.push(session);
        places.insert_unique(hash, place, |&place| hasher.hash_one(sessions[place as usize]));
        true
    }

    /// Removes a session. False when it is not there.
    pub(super) fn remove(&mut self, hash: u64, session: &SessionKey, hasher: &RandomState) -> bool {
        let Self { sessions, places } = self;
        let Ok(entry) = places.find_entry(hash, |&place| sessions[place as usize] == *session) else {
            return false;
        };
        let place = entry.remove().0;
        sessions.swap_remove(place as usize);
        // The last session has taken the place of the one removed; its entry still says where it was.
        if let Some(moved) = sessions.get(place as usize) {
            let old_place = sessions.len() as u16;
            if let Some(entry) = places.find_mut(hasher.hash_one(moved), |&place| place == old_place) {
                *entry = place;
            }
        }
        if sessions.len() < sessions.capacity() / 4 {
            sessions.shrink_to(sessions.len() * 2);
            places.shrink_to(sessions.len() * 2, |&place| hasher.hash_one(sessions[place as usize]));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_finds_what_it_holds_through_growth_removal_and_shrinking() {
        let hasher = RandomState::new();
        let key = |n: i64| SessionKey::new(n % 3, n);
        let hash = |n: i64| hasher.hash_one(key(n));
        let mut bucket = Bucket::default();
        for n in 0..MAX_SESSIONS as i64 {
            assert!(bucket.insert(hash(n), key(n), &hasher));
        }
        assert!(!bucket.insert(hash(-1), key(-1), &hasher), "a full bucket refuses");
        for n in (0..MAX_SESSIONS as i64).filter(|n| n % 100 != 0) {
            assert!(bucket.remove(hash(n), &key(n), &hasher));
            assert!(!bucket.remove(hash(n), &key(n), &hasher));
        }
        for n in 0..MAX_SESSIONS as i64 {
            assert_eq!(bucket.contains(hash(n), &key(n)), n % 100 == 0, "{n}");
        }
        assert_eq!(bucket.sessions().len(), MAX_SESSIONS.div_ceil(100));
        assert!(bucket.sessions.capacity() < MAX_SESSIONS / 10, "room is given back");
    }
}
