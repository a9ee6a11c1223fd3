//! The leases of the memory storage.

mod clock;
mod extensions;
mod undoable;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::{clock::Clock, extensions::Extensions, undoable::Undoable};
use super::{bucket::LeaseSlot, slots::Slots};
use crate::{
    random::random_u64,
    session::{DestroyReason, LeaseId},
    storage::{
        StorageError,
        journal::{Journal, LeaseRow, Lsn, Record},
    },
};

/// How many deadlines are moved under one hold of the table: calls under leases wait for it.
const EXTENDED_A_HOLD: usize = 256;

/// One lease.
pub(super) struct Lease {
    pub(super) id: LeaseId,
    /// What names it in the buckets. Not used again before every session under it is gone.
    pub(super) slot: LeaseSlot,
    ttl: Duration,
    pub(super) owner: Arc<str>,
    /// Read under a bucket's lock before a session comes under the lease there: see [`Lease::enter`].
    is_live: AtomicBool,
    buckets: Mutex<BucketSet>,
}

impl Lease {
    /// Notes that sessions under the lease may be in `bucket`. Called before that bucket is locked, and before
    /// [`is_live`](Self::is_live) is asked under its lock: if the lease ends in between, then either whoever sweeps it sees the bucket,
    /// or who asks sees that it has ended.
    pub(super) fn enter(&self, bucket: u32) {
        self.buckets.lock().insert(bucket);
    }

    pub(super) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Acquire)
    }

    /// The buckets that the sessions under it may be in.
    pub(super) fn buckets(&self) -> Vec<u32> {
        self.buckets.lock().to_vec()
    }
}

/// A lease that has ended, whose sessions are to be destroyed.
pub(super) struct Ended {
    pub(super) lease: Arc<Lease>,
    pub(super) reason: DestroyReason,
}

/// All leases of a storage.
pub(super) struct Leases {
    table: Mutex<Table>,
    slots: Slots,
    /// Told when the next deadline may have come nearer, and when an ended lease was left behind.
    pub(super) changed: Notify,
    max: u64,
    journal: Option<Arc<Journal>>,
}

#[derive(Default)]
struct Table {
    clock: Clock,
    live: HashMap<LeaseId, Live>,
    extensions: Extensions,
    /// The live leases by deadline, extensions left out: neither a timer for each, nor a scan of all.
    deadlines: BTreeSet<(Duration, LeaseId)>,
    /// Ended, and not yet taken by anybody to be swept.
    ended: Vec<Ended>,
    /// Ended, and a crash may still undo it.
    undoable: Undoable,
    free: Vec<LeaseSlot>,
    /// How many slots there are, free ones too.
    slots: LeaseSlot,
}

struct Live {
    lease: Arc<Lease>,
    /// By the table's clock.
    deadline: Duration,
    /// How many extensions had been given when the deadline was set.
    seen: u32,
}

impl Leases {
    pub(super) fn new(max: u64, journal: Option<Arc<Journal>>) -> Self {
        let max = max.min(u64::from(LeaseSlot::MAX - 1));
        Self { table: Mutex::default(), slots: Slots::default(), changed: Notify::new(), max, journal }
    }

    fn record(&self, record: Record<'_>) -> Lsn {
        self.journal.as_ref().map_or(Lsn(0), |journal| journal.record(record))
    }

    fn is_durable(&self, lsn: Lsn) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.is_durable(lsn))
    }

    /// How many leases there are. One whose end a crash may still undo counts.
    pub(super) fn count(&self) -> u64 {
        let table = self.table.lock();
        (table.live.len() + table.undoable.count(|lsn| self.is_durable(lsn))) as u64
    }

    /// Returns the record that must be durable before anybody is told that this lease is gone.
    pub(super) fn end_of(&self, id: LeaseId) -> Lsn {
        self.table.lock().undoable.end_of(id)
    }

    /// Logs the expiries that no crash can undo any more. Returns whether there are others.
    pub(super) fn log_expired(&self) -> bool {
        let (durable, rest) = {
            let table = &mut *self.table.lock();
            (table.undoable.take_durable(|lsn| self.is_durable(lsn)), !table.undoable.is_empty())
        };
        // Whoever reads the log may be slow, and every call under a lease takes the lock.
        for Ended { lease, reason } in durable {
            if reason == DestroyReason::LeaseExpired {
                tracing::info!(lease_id = lease.id.number(), owner = &*lease.owner, "a lease has expired");
            }
        }
        rest
    }

    pub(super) fn grant(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        let mut table = self.table.lock();
        let table = &mut *table;
        // Leases that have ended count until their sessions are gone.
        if u64::from(table.slots) - table.free.len() as u64 >= self.max {
            return Err(StorageError::TooManyLeases { limit: self.max });
        }
        // By chance: a gateway that comes back with an old one must not meet somebody else's.
        let id = loop {
            if let Some(id) = LeaseId::from_number(random_u64() & LeaseId::MAX)
                && !table.live.contains_key(&id)
            {
                break id;
            }
        };
        let deadline = table.insert(&self.slots, id, ttl, owner);
        self.record(Record::LeaseGranted { lease: id, ttl, owner });
        let is_next = table.deadlines.first() == Some(&(deadline, id));
        if is_next {
            self.changed.notify_one();
        }
        Ok(id)
    }

    /// Adds a lease of an earlier life of the registry. A live one has its full ttl again.
    pub(super) fn restore(&self, id: LeaseId, row: LeaseRow) -> Arc<Lease> {
        let mut table = self.table.lock();
        match row {
            LeaseRow::Live { ttl, owner } => {
                table.insert(&self.slots, id, ttl, &owner);
                Arc::clone(&table.live[&id].lease)
            }
            LeaseRow::Ended(reason) => {
                let lease = Arc::new(table.lease(&self.slots, id, Duration::ZERO, "", false));
                table.ended.push(Ended { lease: Arc::clone(&lease), reason });
                lease
            }
        }
    }

    /// Adds a lease that is gone, for the sessions that were under it for a while.
    pub(super) fn restore_gone(&self, id: LeaseId) -> Arc<Lease> {
        Arc::new(self.table.lock().lease(&self.slots, id, Duration::ZERO, "", false))
    }

    /// No session is left under a lease that is gone.
    pub(super) fn restore_free(&self, lease: &Lease) {
        self.table.lock().free.push(lease.slot);
    }

    /// The lease that has this slot, under which there is a session; none for 0.
    pub(super) fn id(&self, slot: LeaseSlot) -> Option<LeaseId> {
        self.slots.id(slot)
    }

    /// Whether the lease that has this slot has ended. Asked while a bucket with a session under it is locked.
    pub(super) fn has_ended(&self, slot: LeaseSlot) -> bool {
        self.slots.has_ended(slot)
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.table.lock().live.get(&id).map(|live| Arc::clone(&live.lease))
    }

    pub(super) fn keep_alive(&self, id: LeaseId) -> Result<Duration, StorageError> {
        let mut table = self.table.lock();
        let ttl = table.live.get(&id).ok_or(StorageError::UnknownLease(id))?.lease.ttl;
        let deadline = table.clock.now() + ttl;
        table.set_deadline(id, deadline);
        Ok(ttl)
    }

    /// Lets every lease live for its whole ttl from now on, and for at least `grace`.
    pub(super) fn keep_all_alive(&self, grace: Duration) {
        let mut table = self.table.lock();
        let now = table.clock.now();
        table.extensions.give(now, grace);
    }

    /// Moves the clock on. Returns how long ago that was done last.
    pub(super) fn look(&self) -> Duration {
        self.table.lock().clock.look()
    }

    /// Ends a lease: from now on nothing comes under it.
    pub(super) fn revoke(&self, id: LeaseId) -> Result<Ended, StorageError> {
        self.end(&mut self.table.lock(), id, DestroyReason::LeaseRevoked).ok_or(StorageError::UnknownLease(id))
    }

    /// A lease to sweep: one that was left behind, or one whose deadline has passed and that is ended now.
    pub(super) fn next_ended(&self) -> Option<Ended> {
        let mut table = self.table.lock();
        if let Some(ended) = table.ended.pop() {
            return Some(ended);
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
        // Others follow when the lock has been free for a moment.
        None
    }

    /// How long it is to the next deadline, or to a look at one that was extended. None if there are no leases.
    pub(super) fn to_next_deadline(&self) -> Option<Duration> {
        let table = self.table.lock();
        table.deadlines.first().map(|(deadline, _)| deadline.saturating_sub(table.clock.now()))
    }

    /// Leaves an ended lease to whoever expires leases.
    pub(super) fn leave(&self, ended: Ended) {
        self.table.lock().ended.push(ended);
        self.changed.notify_one();
    }

    /// No session is under a lease any more: its slot may be used again.
    pub(super) fn swept(&self, lease: &Lease) {
        let mut table = self.table.lock();
        self.record(Record::LeaseSwept { lease: lease.id });
        table.free.push(lease.slot);
    }

    fn end(&self, table: &mut Table, id: LeaseId, reason: DestroyReason) -> Option<Ended> {
        let lease = table.end(id)?;
        self.slots.end(lease.slot);
        let lsn = self.record(Record::LeaseEnded { lease: id, reason });
        if reason == DestroyReason::LeaseExpired || !self.is_durable(lsn) {
            table.undoable.add(lsn, Ended { lease: Arc::clone(&lease), reason });
        }
        Some(Ended { lease, reason })
    }
}

impl Table {
    /// Adds a live lease and gives its deadline.
    fn insert(&mut self, slots: &Slots, id: LeaseId, ttl: Duration, owner: &str) -> Duration {
        let lease = self.lease(slots, id, ttl, owner, true);
        let deadline = self.clock.now() + ttl;
        let seen = self.extensions.count();
        self.live.insert(id, Live { lease: Arc::new(lease), deadline, seen });
        self.deadlines.insert((deadline, id));
        deadline
    }

    /// The deadline of a lease with the extensions that were given since it was set.
    fn extended(&self, id: LeaseId) -> Option<Duration> {
        let Live { lease, deadline, seen } = self.live.get(&id)?;
        Some(self.extensions.extend(*deadline, lease.ttl, *seen))
    }

    fn set_deadline(&mut self, id: LeaseId, deadline: Duration) {
        let Some(live) = self.live.get_mut(&id) else { return };
        self.deadlines.remove(&(live.deadline, id));
        self.deadlines.insert((deadline, id));
        live.deadline = deadline;
        live.seen = self.extensions.count();
    }

    /// Makes a lease with a slot of its own.
    fn lease(&mut self, slots: &Slots, id: LeaseId, ttl: Duration, owner: &str, is_live: bool) -> Lease {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots
        });
        slots.set(slot, id);
        if !is_live {
            slots.end(slot);
        }
        Lease { id, slot, ttl, owner: owner.into(), is_live: AtomicBool::new(is_live), buckets: Mutex::default() }
    }

    fn end(&mut self, id: LeaseId) -> Option<Arc<Lease>> {
        let Live { lease, deadline, .. } = self.live.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        lease.is_live.store(false, Ordering::Release);
        Some(lease)
    }
}

/// Some buckets: a short list, or a bit for each when they are many.
#[derive(Debug)]
enum BucketSet {
    Few(Vec<u32>),
    Many(Vec<u64>),
}

/// A list of more would take longer to search, and as much memory as the bits.
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
    fn leases_are_extended_without_a_look_at_each() {
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
    fn a_set_of_buckets_holds_what_was_put_in_few_or_many() {
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
