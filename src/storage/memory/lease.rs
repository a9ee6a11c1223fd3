//! The leases of the memory storage.

mod clock;
mod extensions;
mod undoable;

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use self::{clock::Clock, extensions::Extensions, undoable::Undoable};
use super::slots::{LeaseState, Slots};
use crate::{
    random::random_u64,
    session::{DestroyReason, LeaseId},
    storage::{
        LeasePage, LeaseQuery, LeaseStatus, StorageError,
        journal::{Journal, LeaseRow, Lsn, Record, WallTime},
    },
    table::LeaseSlot,
};

/// How many deadlines are extended under one hold of the table's lock, for which calls under leases wait.
const EXTENDED_A_HOLD: usize = 256;

/// How many leases are listed under one hold of the table's lock, and the minimum examined for one page.
const LISTED_A_HOLD: usize = 256;
const LISTED_A_PAGE: usize = 1024;

/// A lease.
pub(super) struct Lease {
    pub(super) id: LeaseId,
    /// Identifies the lease in the buckets. Not reused until every session under the lease is gone.
    pub(super) slot: LeaseSlot,
    ttl: Duration,
    pub(super) owner: Arc<str>,
    buckets: Mutex<BucketSet>,
}

impl Lease {
    /// Notes that sessions under the lease may be in `bucket`.
    ///
    /// Called before that bucket is locked, and before [`Slots::state`] is read under its lock. If the lease ends in
    /// between, either its sweep sees the bucket, or the caller sees that the lease has ended.
    pub(super) fn enter(&self, bucket: u32) {
        self.buckets.lock().insert(bucket);
    }

    /// Returns the buckets that may have sessions under the lease.
    pub(super) fn buckets(&self) -> Vec<u32> {
        self.buckets.lock().to_vec()
    }
}

/// An ended lease whose sessions must be destroyed.
pub(super) struct Ended {
    pub(super) lease: Arc<Lease>,
    pub(super) reason: DestroyReason,
}

/// All leases of a storage.
pub(super) struct Leases {
    table: Mutex<Table>,
    pub(super) slots: Slots,
    /// Notified when the next deadline may have moved closer, and when an ended lease was handed back.
    pub(super) changed: Notify,
    max: u64,
    journal: Option<Arc<Journal>>,
}

#[derive(Default)]
struct Table {
    clock: Clock,
    live: HashMap<LeaseId, Live>,
    /// The live and lingering leases, in the order in which they are listed.
    ids: BTreeSet<LeaseId>,
    /// Ended leases whose sessions are not all destroyed yet.
    unswept: HashMap<LeaseId, Arc<Lease>>,
    extensions: Extensions,
    /// The live leases by deadline, without extensions. Replaces a timer per lease and a scan of all leases.
    deadlines: BTreeSet<(Duration, LeaseId)>,
    /// The lingering leases by their ends. These are not deadlines of the clock, because the clock stops during a
    /// pause.
    lingers: BTreeSet<(Instant, LeaseId)>,
    /// Ended leases that no task is sweeping yet.
    ended: Vec<Ended>,
    /// Ended leases whose end a crash may still undo.
    undoable: Undoable,
    /// The newest record of a lease that was granted, lingers or has ended.
    newest_change: Lsn,
    free: Vec<LeaseSlot>,
    /// The number of slots, including free ones.
    slots: LeaseSlot,
}

struct Live {
    lease: Arc<Lease>,
    /// By the table's clock.
    deadline: Duration,
    /// The number of extensions given before the deadline was set.
    seen: u32,
    /// When a lingering lease ends, regardless of its deadline.
    lingers_until: Option<Instant>,
}

impl Leases {
    pub(super) fn new(max: u64, journal: Option<Arc<Journal>>) -> Self {
        let max = max.min(u64::from(LeaseSlot::MAX - 1));
        Self { table: Mutex::default(), slots: Slots::default(), changed: Notify::new(), max, journal }
    }

    /// Returns what the lease accepts now.
    pub(super) fn state(&self, lease: &Lease) -> LeaseState {
        self.slots.state(lease.slot, lease.id)
    }

    fn record(&self, record: Record<'_>) -> Lsn {
        self.journal.as_ref().map_or(Lsn(0), |journal| journal.record(record))
    }

    fn is_durable(&self, lsn: Lsn) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.is_durable(lsn))
    }

    /// Returns the number of leases, including those whose end a crash may still undo.
    pub(super) fn count(&self) -> u64 {
        let table = self.table.lock();
        (table.live.len() + table.undoable.count(|lsn| self.is_durable(lsn))) as u64
    }

    /// Returns the record that must be durable before the end of this lease may be reported.
    pub(super) fn end_of(&self, id: LeaseId) -> Lsn {
        self.table.lock().undoable.end_of(id)
    }

    /// Returns the record that must be durable before a list of leases may be reported.
    pub(super) fn newest_change(&self) -> Lsn {
        self.table.lock().newest_change
    }

    /// Logs the expiries that no crash can undo any more. Returns whether others remain.
    pub(super) fn log_expired(&self) -> bool {
        let (durable, rest) = {
            let table = &mut *self.table.lock();
            (table.undoable.take_durable(|lsn| self.is_durable(lsn)), !table.undoable.is_empty())
        };
        // Logged without the lock, because a log writer may be slow and every call under a lease takes the lock.
        for Ended { lease, reason } in durable {
            if reason == DestroyReason::LeaseExpired {
                tracing::info!(lease_id = lease.id.number(), owner = &*lease.owner, "lease expired");
            }
        }
        rest
    }

    pub(super) fn grant(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        let mut table = self.table.lock();
        let table = &mut *table;
        // Ended leases count until their sessions are gone.
        if u64::from(table.slots) - table.free.len() as u64 >= self.max {
            return Err(StorageError::TooManyLeases { limit: self.max });
        }
        // Random, so that a gateway that returns with an old lease id does not hit another gateway's lease.
        let id = loop {
            if let Some(id) = LeaseId::from_number(random_u64() & LeaseId::MAX)
                && !table.live.contains_key(&id)
                && !table.unswept.contains_key(&id)
            {
                break id;
            }
        };
        let deadline = table.insert(&self.slots, id, ttl, owner);
        table.newest_change = self.record(Record::LeaseGranted { lease: id, ttl, owner });
        let is_next = table.deadlines.first() == Some(&(deadline, id));
        if is_next {
            self.changed.notify_one();
        }
        Ok(id)
    }

    /// Adds a lease from before a restart. A live one gets its full ttl again.
    pub(super) fn restore(&self, id: LeaseId, row: LeaseRow) -> Arc<Lease> {
        let mut table = self.table.lock();
        match row {
            LeaseRow::Live { ttl, owner, lingers_until } => {
                table.insert(&self.slots, id, ttl, &owner);
                if let Some(until) = lingers_until {
                    table.linger(&self.slots, id, until.instant());
                }
                Arc::clone(&table.live[&id].lease)
            }
            LeaseRow::Ended(reason) => {
                let lease = table.ended_lease(&self.slots, id);
                table.hand_over(Ended { lease: Arc::clone(&lease), reason });
                lease
            }
        }
    }

    /// Adds a lease that no longer exists, because log records to be replayed mention it.
    pub(super) fn restore_gone(&self, id: LeaseId) -> Arc<Lease> {
        self.table.lock().ended_lease(&self.slots, id)
    }

    /// Frees the slot of a lease added by [`restore_gone`](Self::restore_gone), once no session is under it.
    pub(super) fn restore_free(&self, lease: &Lease) {
        self.table.lock().free.push(lease.slot);
    }

    /// Returns the lease that has this slot, which must have a session under it. `None` for slot 0.
    pub(super) fn id(&self, slot: LeaseSlot) -> Option<LeaseId> {
        self.slots.id(slot)
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.table.lock().live.get(&id).map(|live| Arc::clone(&live.lease))
    }

    pub(super) fn keep_alive(&self, id: LeaseId) -> Result<Duration, StorageError> {
        let mut table = self.table.lock();
        let live = table.live.get(&id).ok_or(StorageError::UnknownLease(id))?;
        if live.lingers_until.is_some() {
            return Err(StorageError::LeaseLingers(id));
        }
        let ttl = live.lease.ttl;
        let deadline = table.clock.now() + ttl;
        table.set_deadline(id, deadline);
        Ok(ttl)
    }

    /// Extends every lease that does not linger: it lives for its full ttl from now on, and for at least `grace`.
    pub(super) fn keep_all_alive(&self, grace: Duration) {
        let mut table = self.table.lock();
        let now = table.clock.now();
        table.extensions.give(now, grace);
    }

    /// Advances the clock. Returns how long ago it last advanced.
    pub(super) fn advance_clock(&self) -> Duration {
        self.table.lock().clock.advance()
    }

    /// Ends a lease: from now on, no session comes under it.
    pub(super) fn revoke(&self, id: LeaseId) -> Result<Ended, StorageError> {
        self.end(&mut self.table.lock(), id, DestroyReason::LeaseRevoked).ok_or(StorageError::UnknownLease(id))
    }

    /// Makes a lease linger: from now on, no session comes under it, and it ends later. If the lease lingers already,
    /// this can only bring its end forward.
    pub(super) fn linger(&self, id: LeaseId, linger: Duration) -> Result<Arc<Lease>, StorageError> {
        let mut table = self.table.lock();
        let Some(live) = table.live.get(&id) else { return Err(StorageError::UnknownLease(id)) };
        let lease = Arc::clone(&live.lease);
        let until = Instant::now() + linger;
        if table.linger(&self.slots, id, until) {
            let lingers_until = WallTime::of(until);
            table.newest_change =
                self.record(Record::LeaseLingers { lease: id, ttl: lease.ttl, owner: &lease.owner, lingers_until });
            self.changed.notify_one();
        }
        Ok(lease)
    }

    /// Lists the leases that have not ended.
    pub(super) fn list(&self, query: &LeaseQuery) -> LeasePage {
        let named: BTreeSet<LeaseId> = query.lease_ids.iter().copied().collect();
        let mut page = LeasePage { leases: Vec::new(), next: query.after };
        let (limit, mut looked_at) = (query.limit.max(1), 0);
        while looked_at < limit.max(LISTED_A_PAGE) && page.leases.len() < limit {
            let table = self.table.lock();
            let ids = if named.is_empty() { &table.ids } else { &named };
            let ids = ids.range((page.next.map_or(Unbounded, Excluded), Unbounded));
            let before = looked_at;
            for id in ids.take(LISTED_A_HOLD.min(limit - page.leases.len())) {
                looked_at += 1;
                page.next = Some(*id);
                let status = table.live.get(id).map(|live| table.status(&self.slots, *id, live));
                page.leases
                    .extend(status.filter(|status| query.owner.as_ref().is_none_or(|owner| **owner == *status.owner)));
            }
            if looked_at == before {
                page.next = None;
                break;
            }
        }
        page
    }

    /// Returns those of the leases that are live, or whose sessions are not all destroyed yet.
    pub(super) fn unswept(&self, ids: &[LeaseId]) -> Vec<Arc<Lease>> {
        let table = self.table.lock();
        let get = |id| table.live.get(id).map(|live| &live.lease).or_else(|| table.unswept.get(id));
        ids.iter().filter_map(get).cloned().collect()
    }

    /// Returns a lease to sweep: one that was handed back, or one whose deadline or linger has passed, which this call
    /// ends.
    pub(super) fn next_ended(&self) -> Option<Ended> {
        let mut table = self.table.lock();
        if let Some(ended) = table.ended.pop() {
            return Some(ended);
        }
        if let Some((until, id)) = table.lingers.first().copied()
            && until <= Instant::now()
        {
            return self.end(&mut table, id, DestroyReason::LeaseRevoked);
        }
        let now = table.clock.now();
        for _ in 0..EXTENDED_A_HOLD {
            let (deadline, id) = *table.deadlines.first()?;
            if deadline > now {
                return None;
            }
            let extended = table.extended(id)?;
            if extended <= now {
                return self.end(&mut table, id, DestroyReason::LeaseExpired);
            }
            table.set_deadline(id, extended);
        }
        // The rest follows after the lock has been released for a moment.
        None
    }

    /// Returns the time until the next deadline or end of a linger. The deadline may turn out to be extended. `None` if
    /// there are no leases.
    pub(super) fn to_next_deadline(&self) -> Option<Duration> {
        let table = self.table.lock();
        let deadline = table.deadlines.first().map(|(deadline, _)| deadline.saturating_sub(table.clock.now()));
        let linger = table.lingers.first().map(|(until, _)| until.saturating_duration_since(Instant::now()));
        deadline.into_iter().chain(linger).min()
    }

    /// Hands an ended lease to the task that expires leases.
    pub(super) fn hand_over(&self, ended: Ended) {
        self.table.lock().hand_over(ended);
        self.changed.notify_one();
    }

    /// Frees the slot of a lease that no session is under any more.
    pub(super) fn swept(&self, lease: &Lease) {
        let mut table = self.table.lock();
        self.record(Record::LeaseSwept { lease: lease.id });
        table.unswept.remove(&lease.id);
        table.free.push(lease.slot);
    }

    fn end(&self, table: &mut Table, id: LeaseId, reason: DestroyReason) -> Option<Ended> {
        let lease = table.end(&self.slots, id)?;
        let lsn = self.record(Record::LeaseEnded { lease: id, reason });
        table.newest_change = lsn;
        if reason == DestroyReason::LeaseExpired || !self.is_durable(lsn) {
            table.undoable.add(lsn, Ended { lease: Arc::clone(&lease), reason });
        }
        Some(Ended { lease, reason })
    }
}

impl Table {
    /// Adds a live lease and returns its deadline.
    fn insert(&mut self, slots: &Slots, id: LeaseId, ttl: Duration, owner: &str) -> Duration {
        let lease = self.lease(slots, id, ttl, owner);
        let deadline = self.clock.now() + ttl;
        let seen = self.extensions.count();
        self.live.insert(id, Live { lease: Arc::new(lease), deadline, seen, lingers_until: None });
        self.ids.insert(id);
        self.deadlines.insert((deadline, id));
        deadline
    }

    /// Returns a lease's deadline, including the extensions given since it was set.
    fn extended(&self, id: LeaseId) -> Option<Duration> {
        self.live.get(&id).map(|live| live.deadline(&self.extensions))
    }

    fn set_deadline(&mut self, id: LeaseId, deadline: Duration) {
        let Some(live) = self.live.get_mut(&id) else { return };
        self.deadlines.remove(&(live.deadline, id));
        self.deadlines.insert((deadline, id));
        live.deadline = deadline;
        live.seen = self.extensions.count();
    }

    /// Makes a lease and gives it a slot.
    fn lease(&mut self, slots: &Slots, id: LeaseId, ttl: Duration, owner: &str) -> Lease {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots
        });
        slots.set(slot, id);
        Lease { id, slot, ttl, owner: owner.into(), buckets: Mutex::default() }
    }

    /// Makes an ended lease and gives it a slot.
    fn ended_lease(&mut self, slots: &Slots, id: LeaseId) -> Arc<Lease> {
        let lease = self.lease(slots, id, Duration::ZERO, "");
        slots.end(lease.slot);
        Arc::new(lease)
    }

    /// Makes a lease linger until `until`. Returns false if the lease is unknown, or already lingers and ends no later.
    fn linger(&mut self, slots: &Slots, id: LeaseId, until: Instant) -> bool {
        let Some(live) = self.live.get_mut(&id) else { return false };
        match live.lingers_until {
            Some(known) if known <= until => return false,
            Some(known) => self.lingers.remove(&(known, id)),
            None => self.deadlines.remove(&(live.deadline, id)),
        };
        live.lingers_until = Some(until);
        self.lingers.insert((until, id));
        slots.linger(live.lease.slot);
        true
    }

    fn end(&mut self, slots: &Slots, id: LeaseId) -> Option<Arc<Lease>> {
        let Live { lease, deadline, lingers_until, .. } = self.live.remove(&id)?;
        self.ids.remove(&id);
        match lingers_until {
            Some(until) => self.lingers.remove(&(until, id)),
            None => self.deadlines.remove(&(deadline, id)),
        };
        self.unswept.insert(id, Arc::clone(&lease));
        slots.end(lease.slot);
        Some(lease)
    }

    /// Hands an ended lease to the task that expires leases.
    fn hand_over(&mut self, ended: Ended) {
        self.unswept.insert(ended.lease.id, Arc::clone(&ended.lease));
        self.ended.push(ended);
    }

    fn status(&self, slots: &Slots, id: LeaseId, live: &Live) -> LeaseStatus {
        let Live { lease, lingers_until, .. } = live;
        LeaseStatus {
            lease: id,
            owner: Arc::clone(&lease.owner),
            ttl: lease.ttl,
            expires_in: match lingers_until {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => live.deadline(&self.extensions).saturating_sub(self.clock.now()),
            },
            session_count: slots.sessions(lease.slot),
            lingers: lingers_until.is_some(),
        }
    }
}

impl Live {
    /// Returns the deadline, including the extensions given since it was set.
    fn deadline(&self, extensions: &Extensions) -> Duration {
        extensions.extend(self.deadline, self.lease.ttl, self.seen)
    }
}

/// A set of buckets: a short list, or one bit per bucket.
#[derive(Debug)]
enum BucketSet {
    Few(Vec<u32>),
    Many(Vec<u64>),
}

/// The maximum length of the list. A longer one would be slower to search, and as large as the bits.
const FEW: usize = 64;

impl Default for BucketSet {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl BucketSet {
    fn insert(&mut self, bucket: u32) {
        match self {
            Self::Few(list) if list.contains(&bucket) => {}
            Self::Few(list) if list.len() < FEW => list.push(bucket),
            Self::Few(list) => {
                let list = std::mem::take(list);
                *self = Self::Many(Vec::new());
                list.into_iter().for_each(|bucket| self.insert(bucket));
                self.insert(bucket);
            }
            Self::Many(words) => {
                let word = bucket as usize / 64;
                if words.len() <= word {
                    words.resize(word + 1, 0);
                }
                words[word] |= 1 << (bucket % 64);
            }
        }
    }

    fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::Few(list) => list.clone(),
            Self::Many(words) => (0..)
                .zip(words)
                .flat_map(|(index, word)| {
                    (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn extending_all_leases_takes_constant_time() {
        const LEASES: u32 = 100_000;
        let leases = Leases::new(u64::from(LEASES), None);
        let began = Instant::now();
        for _ in 0..LEASES {
            leases.grant(Duration::from_secs(60), "").unwrap();
        }
        let granting = began.elapsed();
        let began = Instant::now();
        leases.keep_all_alive(Duration::from_secs(150));
        let extending = began.elapsed();
        println!("{granting:?} to grant, {extending:?} to extend");
        assert!(extending < granting / 100, "{granting:?} to grant, {extending:?} to extend");
    }

    #[test]
    fn bucket_set_holds_few_and_many_buckets() {
        let mut set = BucketSet::default();
        for n in 0..200u32 {
            set.insert(n * 37 % 4096);
            set.insert(n * 37 % 4096);
            let mut held = set.to_vec();
            held.sort_unstable();
            let mut put: Vec<u32> = (0..=n).map(|n| n * 37 % 4096).collect();
            put.sort_unstable();
            assert_eq!(held, put);
        }
    }
}
