//! The leases. They are kept in memory and in a table. Their deadlines are only in memory, because every lease gets its
//! full ttl again after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use redb::ReadableTable;
use sessiond::{
    session::{DestroyReason, LeaseId},
    storage::{LeasePage, LeaseQuery, LeaseStatus, MAX_LINGER, MAX_TTL, StorageError, StorageOptions},
};

use super::{registry::Registry, tables::Tables};

/// The maximum time by which one call advances the clock of the leases.
const MAX_ADVANCE: Duration = Duration::from_millis(350);

/// If the clock was not advanced for this long, the process was paused, and gateways may have lost their connections.
const PAUSE: Duration = Duration::from_secs(5);

/// How long gateways need to reconnect after an outage, beyond its length.
const BEYOND_OUTAGE: Duration = Duration::from_secs(20);

/// What a lease accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Lives,
    Lingers,
    Ended,
}

struct Lease {
    ttl: Duration,
    owner: Arc<str>,
    /// When the lease expires unless it is kept alive, by [`Leases::clock`].
    deadline: Duration,
    /// When a lingering lease ends, in milliseconds since 1970.
    lingers_until: Option<u64>,
    session_count: u64,
}

/// A lease whose sessions are being destroyed.
struct Ended {
    reason: DestroyReason,
    destroyed: Arc<AtomicU64>,
}

pub(super) struct Leases {
    /// The leases that have not ended, including lingering ones.
    live: BTreeMap<LeaseId, Lease>,
    /// The live leases that do not linger, by deadline.
    deadlines: BTreeSet<(Duration, LeaseId)>,
    /// The lingering leases, by the end of their linger.
    lingers: BTreeSet<(u64, LeaseId)>,
    /// The ended leases that may still have sessions.
    ended: BTreeMap<LeaseId, Ended>,
    /// The lease that was swept last. The next step sweeps those after it.
    swept: Option<LeaseId>,
    /// A clock that stops while nobody advances it. So no lease expires because the process was paused.
    clock: Duration,
    advanced: Instant,
    options: StorageOptions,
}

impl Leases {
    /// Loads the leases after a restart. The length of the downtime is unknown, so every lease gets its ttl again, and
    /// at least the full grace.
    pub(super) fn load(tables: &Tables<'_>, options: StorageOptions) -> Result<Self, redb::Error> {
        let mut leases = Self {
            live: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            lingers: BTreeSet::new(),
            ended: BTreeMap::new(),
            swept: None,
            clock: Duration::ZERO,
            advanced: Instant::now(),
            options,
        };
        for row in tables.leases.iter()? {
            let (id, row) = row?;
            let (Some(id), (ttl, owner, until, ended)) = (LeaseId::from_number(id.value()), row.value()) else {
                continue;
            };
            match ended {
                0 => leases.add(id, Duration::from_millis(ttl), owner.into(), options.outage_grace),
                1 => leases.end(id, DestroyReason::LeaseExpired, Arc::default()),
                _ => leases.end(id, DestroyReason::LeaseRevoked, Arc::default()),
            }
            if ended == 0 && until > 0 {
                leases.let_linger(id, until);
            }
        }
        for row in tables.under.iter()? {
            if let Some(lease) = LeaseId::from_number(row?.0.value().0) {
                leases.count_session(lease, 1);
            }
        }
        Ok(leases)
    }

    fn now(&self) -> Duration {
        self.clock + self.advanced.elapsed().min(MAX_ADVANCE)
    }

    /// Starts the clock, when leases begin to be expired. The time before that does not count as a pause.
    pub(super) fn start_clock(&mut self) {
        self.clock = self.now();
        self.advanced = Instant::now();
    }

    /// Advances the clock. If the process was paused, extends all leases.
    fn advance_clock(&mut self) {
        let outage = self.advanced.elapsed();
        self.start_clock();
        if outage > PAUSE {
            let grace = (outage + BEYOND_OUTAGE).min(self.options.outage_grace);
            let (now, all) = (self.clock, std::mem::take(&mut self.deadlines));
            for (deadline, id) in all {
                let Some(lease) = self.live.get_mut(&id) else { continue };
                lease.deadline = deadline.max(now + lease.ttl.max(grace));
                self.deadlines.insert((lease.deadline, id));
            }
        }
    }

    fn add(&mut self, id: LeaseId, ttl: Duration, owner: Arc<str>, grace: Duration) {
        let deadline = self.now() + ttl.max(grace);
        self.deadlines.insert((deadline, id));
        self.live.insert(id, Lease { ttl, owner, deadline, lingers_until: None, session_count: 0 });
    }

    fn end(&mut self, id: LeaseId, reason: DestroyReason, destroyed: Arc<AtomicU64>) {
        if let Some(lease) = self.live.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
            self.lingers.remove(&(lease.lingers_until.unwrap_or_default(), id));
        }
        self.ended.insert(id, Ended { reason, destroyed });
    }

    /// Lets a lease linger until `until`, or until an earlier time that was already set. Returns that time, or `None`
    /// if the lease is unknown.
    fn let_linger(&mut self, id: LeaseId, until: u64) -> Option<u64> {
        let lease = self.live.get_mut(&id)?;
        let until = lease.lingers_until.map_or(until, |known| known.min(until));
        self.deadlines.remove(&(lease.deadline, id));
        if let Some(known) = lease.lingers_until.replace(until) {
            self.lingers.remove(&(known, id));
        }
        self.lingers.insert((until, id));
        Some(until)
    }

    pub(super) fn standing(&self, id: LeaseId) -> Standing {
        match self.live.get(&id) {
            None => Standing::Ended,
            Some(Lease { lingers_until: Some(_), .. }) => Standing::Lingers,
            Some(_) => Standing::Lives,
        }
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId) -> Result<Duration, StorageError> {
        let now = self.now();
        let lease = self.live.get_mut(&id).ok_or(StorageError::UnknownLease(id))?;
        if lease.lingers_until.is_some() {
            return Err(StorageError::LeaseLingers(id));
        }
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    pub(super) fn owner(&self, id: LeaseId) -> Option<Arc<str>> {
        self.live.get(&id).map(|lease| Arc::clone(&lease.owner))
    }

    pub(super) fn count(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn count_session(&mut self, id: LeaseId, change: i64) {
        if let Some(lease) = self.live.get_mut(&id) {
            lease.session_count = lease.session_count.saturating_add_signed(change);
        }
    }

    pub(super) fn list(&self, query: &LeaseQuery) -> LeasePage {
        let passes = |(id, lease): &(&LeaseId, &Lease)| {
            (query.lease_ids.is_empty() || query.lease_ids.contains(id))
                && query.owner.as_ref().is_none_or(|owner| **owner == *lease.owner)
        };
        let status = |(id, lease): (&LeaseId, &Lease)| {
            let expires_in = match lease.lingers_until {
                Some(until) => Duration::from_millis(until.saturating_sub(wall_clock())),
                None => lease.deadline.saturating_sub(self.now()),
            };
            LeaseStatus::new(*id, Arc::clone(&lease.owner), lease.ttl)
                .expires_in(expires_in)
                .session_count(lease.session_count)
                .lingers(lease.lingers_until.is_some())
        };
        let after = query.after.map_or(Unbounded, Excluded);
        let mut found = self.live.range((after, Unbounded)).filter(passes);
        let leases: Vec<_> = found.by_ref().take(query.limit.max(1)).map(status).collect();
        let next = found.next().and(leases.last()).map(|last| last.lease);
        LeasePage::new(leases, next)
    }

    /// Advances the clock, and returns a lease that is due to end, with the reason for its sessions.
    pub(super) fn next_due(&mut self) -> Option<(LeaseId, DestroyReason)> {
        self.advance_clock();
        match (self.lingers.first(), self.deadlines.first()) {
            (Some((until, id)), _) if *until <= wall_clock() => Some((*id, DestroyReason::LeaseRevoked)),
            (_, Some((deadline, id))) if *deadline <= self.clock => Some((*id, DestroyReason::LeaseExpired)),
            _ => None,
        }
    }

    pub(super) fn ended(&self, id: LeaseId) -> Option<(DestroyReason, Arc<AtomicU64>)> {
        self.ended.get(&id).map(|Ended { reason, destroyed }| (*reason, Arc::clone(destroyed)))
    }

    pub(super) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Returns some ended leases to sweep. All of them take turns, so that small leases do not wait for large ones.
    pub(super) fn next_ended(&mut self, count: usize) -> Vec<LeaseId> {
        let after = self.swept.map_or(Unbounded, Excluded);
        let some: Vec<_> = self.ended.range((after, Unbounded)).take(count).map(|(id, _)| *id).collect();
        self.swept = some.last().copied().filter(|_| some.len() == count);
        some
    }
}

impl Registry<'_, '_> {
    pub(super) fn grant_lease(
        &mut self,
        ttl: Duration,
        owner: String,
    ) -> Result<Result<LeaseId, StorageError>, redb::Error> {
        let leases = &mut self.memory.leases;
        let limit = leases.options.max_leases;
        if leases.count() >= limit {
            return Ok(Err(StorageError::TooManyLeases { limit }));
        }
        // Round up, because no lease may end before its ttl.
        let ttl_ms = ttl.min(MAX_TTL).as_nanos().div_ceil(1_000_000) as u64;
        let id = loop {
            let id = LeaseId::from_number(fastrand::u64(1..=LeaseId::MAX));
            if let Some(id) = id.filter(|id| !leases.live.contains_key(id) && !leases.ended.contains_key(id)) {
                break id;
            }
        };
        self.tables.leases.insert(id.number(), (ttl_ms, &*owner, 0, 0))?;
        leases.add(id, Duration::from_millis(ttl_ms), owner.into(), Duration::ZERO);
        self.change();
        Ok(Ok(id))
    }

    pub(super) fn let_linger(
        &mut self,
        id: LeaseId,
        linger: Duration,
    ) -> Result<Result<(), StorageError>, redb::Error> {
        let linger_ms = linger.min(MAX_LINGER).as_nanos().div_ceil(1_000_000) as u64;
        let leases = &mut self.memory.leases;
        let until = leases.let_linger(id, wall_clock() + linger_ms + 1);
        let (Some(until), Some(lease)) = (until, leases.live.get(&id)) else {
            return Ok(Err(StorageError::UnknownLease(id)));
        };
        self.tables.leases.insert(id.number(), (lease.ttl.as_millis() as u64, &*lease.owner, until, 0))?;
        self.change();
        Ok(Ok(()))
    }

    /// Ends a lease. From now on, no session comes under it.
    pub(super) fn end_lease(
        &mut self,
        id: LeaseId,
        reason: DestroyReason,
        destroyed: Arc<AtomicU64>,
    ) -> Result<(), redb::Error> {
        self.memory.leases.end(id, reason, destroyed);
        let ended = if reason == DestroyReason::LeaseExpired { 1 } else { 2 };
        self.tables.leases.insert(id.number(), (0, "", 0, ended))?;
        self.change();
        Ok(())
    }

    /// Forgets an ended lease that no session is under any more.
    pub(super) fn forget_lease(&mut self, id: LeaseId) -> Result<(), redb::Error> {
        self.memory.leases.ended.remove(&id);
        self.tables.leases.remove(id.number())?;
        self.change();
        Ok(())
    }
}

/// Returns the wall time in milliseconds since 1970. Lingers are measured by it, because their ends outlive the
/// process.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
