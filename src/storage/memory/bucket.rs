//! A bucket of the set: a table of sessions, and their changes that may not be on disk yet.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
};

use parking_lot::Mutex;

use crate::{session::SessionKey, storage::journal::Lsn, table::Table};

/// The capacity of the list of recent changes that remains after a burst.
const ROOM_FOR_RECENT: usize = 16;

/// A bucket of sessions.
#[derive(Default)]
pub(super) struct Bucket {
    table: Table,
    /// The latest changes and their records, which may not be on disk yet. `None` until one is recorded.
    #[expect(clippy::box_collection, reason = "a bucket is small without it")]
    recent: Option<Box<VecDeque<(SessionKey, Lsn)>>>,
}

// With its lock, a bucket fits in two cache lines.
const _: () = assert!(size_of::<Mutex<Bucket>>() <= 128);

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
}

impl Deref for Bucket {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Bucket {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}
