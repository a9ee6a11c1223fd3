//! The sessions of a mirror, and the lease of each.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    session::SessionKey,
    table::{LeaseSlot, SessionHasher, Table},
};

/// The number of tables in a mirror of the whole registry, which holds up to 200 million sessions.
pub(super) const TABLES: usize = 4096;
/// The number of tables in a mirror of a part of the registry.
pub(super) const TABLES_OF_PART: usize = 256;

/// How many sessions of a snapshot are inserted together: 64 for each of [`TABLES`], in 6 MiB.
pub(super) const INSERT_BATCH: usize = 1 << 18;

/// Sessions in many small tables, each with its own lock, so that readers and the writer rarely meet. Only one task
/// writes.
pub(super) struct Contents {
    hasher: SessionHasher,
    tables: Box<[Mutex<Table>]>,
    len: AtomicUsize,
}

impl Contents {
    /// Returns empty contents. The number of `tables` must be a power of two.
    pub(super) fn new(tables: usize) -> Self {
        Self::with_hasher(SessionHasher::random(), tables)
    }

    fn with_hasher(hasher: SessionHasher, tables: usize) -> Self {
        Self { hasher, tables: (0..tables).map(|_| Mutex::default()).collect(), len: AtomicUsize::new(0) }
    }

    /// Returns empty contents that can be [swapped](Self::swap) with `self`.
    pub(super) fn empty(&self) -> Self {
        Self::with_hasher(self.hasher.clone(), self.tables.len())
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn contains(&self, session: &SessionKey) -> bool {
        let (hash, table) = self.locked(session);
        table.find(hash, session).is_some()
    }

    /// Calls `read` with the lease of a session while its table is locked, so that the lease cannot end meanwhile.
    pub(super) fn read<T>(&self, session: &SessionKey, read: impl FnOnce(LeaseSlot) -> T) -> Option<T> {
        let (hash, table) = self.locked(session);
        let place = table.find(hash, session)?;
        Some(read(table.lease(place)))
    }

    /// Inserts a session or replaces its lease. Returns the lease that it was under before, if it was held.
    pub(super) fn set(&self, session: SessionKey, lease: LeaseSlot) -> Option<LeaseSlot> {
        self.set_at(self.spot_of(&session), session, lease)
    }

    /// Inserts many sessions or replaces their leases. Calls `replaced` with each lease that was replaced.
    ///
    /// The sessions are inserted table by table. In any other order, each session would cost several cache misses.
    pub(super) fn set_all(&self, sessions: &[(SessionKey, LeaseSlot)], mut replaced: impl FnMut(LeaseSlot)) {
        let spots: Vec<Spot> = sessions.iter().map(|(session, _)| self.spot_of(session)).collect();
        // A counting sort: the end of each table's part of `order`, which becomes its start as it is filled.
        let mut parts = vec![0; self.tables.len() + 1];
        spots.iter().for_each(|spot| parts[spot.table] += 1);
        let mut end = 0;
        for part in &mut parts {
            end += *part;
            *part = end;
        }
        let mut order = vec![0; sessions.len()];
        for (nth, spot) in spots.iter().enumerate().rev() {
            parts[spot.table] -= 1;
            order[parts[spot.table]] = nth;
        }
        for (table, part) in self.tables.iter().zip(parts.windows(2)) {
            let run = &order[part[0]..part[1]];
            if run.is_empty() {
                continue;
            }
            let is_leased = run.iter().any(|nth| sessions[*nth].1 != 0);
            let need = lock_table(table).need_for(run.len(), is_leased);
            let room = need.make();
            let unused = lock_table(table).move_into(room, &self.hasher);
            drop(unused);
            let mut table = lock_table(table);
            for nth in run {
                let (session, lease) = sessions[*nth];
                if let Some(before) = self.put(&mut table, spots[*nth].hash, session, lease) {
                    replaced(before);
                }
            }
        }
    }

    fn set_at(&self, Spot { hash, table }: Spot, session: SessionKey, lease: LeaseSlot) -> Option<LeaseSlot> {
        self.put(&mut self.with_room(&self.tables[table], lease != 0), hash, session, lease)
    }

    /// Sets a session in a table that has room for it.
    fn put(&self, table: &mut Table, hash: u64, session: SessionKey, lease: LeaseSlot) -> Option<LeaseSlot> {
        match table.find(hash, &session) {
            Some(place) => {
                let before = table.lease(place);
                if before != lease {
                    table.set_lease(place, lease);
                }
                Some(before)
            }
            None => {
                if table.insert(hash, session, lease, &self.hasher) {
                    self.len.fetch_add(1, Ordering::Relaxed);
                } else {
                    tracing::error!(auth_key_id = %session.auth_key_id, session_id = %session.session_id, "the mirror is full");
                }
                None
            }
        }
    }

    /// Removes a session. Returns the lease that it was under, if it was held.
    pub(super) fn remove(&self, session: &SessionKey) -> Option<LeaseSlot> {
        let Spot { hash, table } = self.spot_of(session);
        let lock = &self.tables[table];
        let mut table = lock_table(lock);
        let place = table.find(hash, session)?;
        let lease = table.lease(place);
        table.remove(hash, place, &self.hasher);
        drop(table);
        self.len.fetch_sub(1, Ordering::Relaxed);
        // Returns memory that is no longer needed.
        drop(self.with_room(lock, false));
        Some(lease)
    }

    /// Locks a table that has the room it needs. Allocates and frees memory while it is unlocked, because the kernel
    /// may take milliseconds.
    fn with_room<'a>(&self, lock: &'a Mutex<Table>, is_leased: bool) -> MutexGuard<'a, Table> {
        let mut table = lock_table(lock);
        while let Some(need) = table.need(is_leased) {
            drop(table);
            let room = need.make();
            table = lock_table(lock);
            let unused = table.move_into(room, &self.hasher);
            drop(table);
            drop(unused);
            table = lock_table(lock);
        }
        table
    }

    /// Calls `each` with every session in table `nth`, and its lease. The table is locked meanwhile.
    pub(super) fn for_each(&self, nth: usize, mut each: impl FnMut(SessionKey, LeaseSlot)) {
        lock_table(&self.tables[nth]).leased().for_each(|(session, lease)| each(session, lease));
    }

    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Swaps table `nth` with that of `other`.
    pub(super) fn swap(&self, nth: usize, other: &Self) {
        let mut theirs = lock_table(&other.tables[nth]);
        mem::swap(&mut *lock_table(&self.tables[nth]), &mut *theirs);
    }

    /// Swaps the number of sessions with that of `other`. Call this after all tables have been swapped.
    pub(super) fn swap_len(&self, other: &Self) {
        other.len.store(self.len.swap(other.len(), Ordering::Relaxed), Ordering::Relaxed);
    }

    fn spot_of(&self, session: &SessionKey) -> Spot {
        let table = self.hasher.across(session) as usize & (self.tables.len() - 1);
        Spot { hash: self.hasher.within(session), table }
    }

    fn locked(&self, session: &SessionKey) -> (u64, MutexGuard<'_, Table>) {
        let Spot { hash, table } = self.spot_of(session);
        (hash, lock_table(&self.tables[table]))
    }
}

/// Where a session is, or would be.
#[derive(Clone, Copy, Default)]
struct Spot {
    hash: u64,
    table: usize,
}

fn lock_table(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
