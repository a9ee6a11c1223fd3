//! The sessions and the log, within a transaction.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use redb::{ReadableTable, ReadableTableMetadata};
use sessiond::{
    session::{DestroyReason, LeaseId, SessionEvent, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, LeaseBuckets, LogError, LogExtent, LogPoint, Lookup,
        Mark, Place, Places, Position, RegistryId, StorageError, StorageOptions, Takeover,
    },
};

use super::{
    leases::{Leases, Standing},
    tables::{self, Tables, event, event_row, lease_number, session_row},
};

/// The maximum number of sessions of an ended lease that one step destroys.
const SESSIONS_A_SWEEP: usize = 256;

/// How many ended leases are swept together.
const SWEEPS_A_STEP: usize = 8;

/// How long the database may be idle before a test write checks whether it can still be written.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// The state that the thread keeps in memory beside the tables.
pub(super) struct Memory {
    pub(super) leases: Leases,
    registry_id: RegistryId,
    /// The log holds the changes after this position.
    start: u64,
    /// The position of the newest change.
    end: u64,
    options: StorageOptions,
    last_change: Instant,
}

impl Memory {
    /// Loads the state from the tables, and draws a mark for the changes that will follow.
    pub(super) fn load(tables: &mut Tables<'_>, options: StorageOptions) -> Result<Self, redb::Error> {
        let known_id = tables.meta.get("registry_id")?.map(|id| id.value());
        let registry_id = known_id.unwrap_or_else(|| fastrand::u64(..));
        tables.meta.insert("registry_id", registry_id)?;
        let (start, end) = match (tables.log.first()?, tables.log.last()?) {
            (Some((first, _)), Some((last, _))) => (first.value() - 1, last.value()),
            _ => (0, 0),
        };
        // Existing positions keep their marks. In a new registry, position 0 gets the mark too.
        let next = if known_id.is_some() { end + 1 } else { 0 };
        tables.marks.insert(next, fastrand::u64(..))?;
        // Remove the marks of trimmed positions, but keep the mark at `start`.
        let of_start = tables.marks.range(..=start)?.next_back().transpose()?.map_or(0, |(from, _)| from.value());
        tables.marks.retain(|from, _| from >= of_start)?;
        let leases = Leases::load(tables, options)?;
        Ok(Self { leases, registry_id: RegistryId(registry_id), start, end, options, last_change: Instant::now() })
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }
}

/// The registry within a transaction.
pub(super) struct Registry<'t, 'm> {
    pub(super) tables: Tables<'t>,
    pub(super) memory: &'m mut Memory,
    has_changed: bool,
}

impl<'t, 'm> Registry<'t, 'm> {
    pub(super) fn new(tables: Tables<'t>, memory: &'m mut Memory) -> Self {
        Self { tables, memory, has_changed: false }
    }

    /// Returns whether the transaction has changes to commit.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Records that the transaction has changes to commit.
    pub(super) fn change(&mut self) {
        self.has_changed = true;
        self.memory.last_change = Instant::now();
    }

    /// Returns the lease that a session is under, according to the log. `None` if the session does not exist.
    fn held(&self, session: &SessionKey) -> Result<Option<Option<LeaseId>>, redb::Error> {
        Ok(self.tables.sessions.get(session_row(session))?.map(|lease| LeaseId::from_number(lease.value())))
    }

    /// Sets the lease of a session, or removes the session if `after` is `None`, and logs the change.
    fn log(
        &mut self,
        before: Option<LeaseId>,
        after: Option<Option<LeaseId>>,
        event: SessionEvent,
    ) -> Result<(), redb::Error> {
        let row = session_row(&event.session);
        let (_, auth_key, session) = row;
        if let Some(before) = before {
            self.tables.under.remove((before.number(), auth_key, session))?;
            self.memory.leases.count_session(before, -1);
        }
        match after {
            Some(lease) => self.tables.sessions.insert(row, lease_number(lease))?,
            None => self.tables.sessions.remove(row)?,
        };
        if let Some(lease) = after.flatten() {
            self.tables.under.insert((lease.number(), auth_key, session), ())?;
            self.memory.leases.count_session(lease, 1);
        }
        self.memory.end += 1;
        self.tables.log.insert(self.memory.end, event_row(&event))?;
        while self.memory.end - self.memory.start > self.memory.options.retain_events.max(1) as u64 {
            self.memory.start += 1;
            self.tables.log.remove(self.memory.start)?;
        }
        self.change();
        Ok(())
    }

    /// Returns the answers with their place, which is the end of the log.
    fn answers<T>(&self, sessions: Vec<T>) -> Answers<T> {
        let mut places = Places::default();
        places.add(Place { partition: 0, position: Position(self.memory.end) });
        Answers::new(sessions, places)
    }

    pub(super) fn create(
        &mut self,
        sessions: &[SessionKey],
        CreateOptions { lease, takeover, .. }: CreateOptions,
    ) -> Result<Result<Answers<Creation>, StorageError>, redb::Error> {
        if let Some(id) = lease {
            match self.memory.leases.standing(id) {
                Standing::Lives => {}
                Standing::Lingers => return Ok(Err(StorageError::LeaseLingers(id))),
                Standing::Ended => return Ok(Err(StorageError::UnknownLease(id))),
            }
        }
        let mut answers = Vec::with_capacity(sessions.len());
        for session in sessions {
            let held = self.held(session)?;
            let limit = self.memory.options.max_sessions;
            answers.push(match (held, lease) {
                (None, _) if self.tables.sessions.len()? >= limit => {
                    return Ok(Err(StorageError::TooManySessions { limit }));
                }
                (None, _) => {
                    self.log(None, Some(lease), SessionEvent::created(*session, lease))?;
                    Creation::new(true, lease)
                }
                (Some(held), Some(lease)) if held != Some(lease) && self.may_take(held, takeover) => {
                    self.log(held, Some(Some(lease)), SessionEvent::moved(*session, lease, held))?;
                    Creation::new(false, Some(lease))
                }
                (Some(held), _) => Creation::new(false, self.reported(held)),
            });
        }
        Ok(Ok(self.answers(answers)))
    }

    fn may_take(&self, held: Option<LeaseId>, takeover: Takeover) -> bool {
        let is_protected = held.is_some_and(|held| self.memory.leases.standing(held) == Standing::Lives);
        match takeover {
            Takeover::Always => true,
            Takeover::OnlyFrom(from) => !is_protected || held == from,
        }
    }

    /// Returns the lease to report for a session: none if its lease has ended.
    fn reported(&self, held: Option<LeaseId>) -> Option<LeaseId> {
        held.filter(|held| self.memory.leases.standing(*held) != Standing::Ended)
    }

    pub(super) fn lookup(&mut self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, redb::Error> {
        let look = |session| {
            let held = self.held(session)?;
            Ok(held.map_or(Lookup::ABSENT, |lease| Lookup::found(self.reported(lease))))
        };
        sessions.iter().map(look).collect()
    }

    pub(super) fn destroy(
        &mut self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, redb::Error> {
        let mut answers = Vec::with_capacity(sessions.len());
        for session in sessions {
            let (held, reason) = match lease {
                None => (self.held(session)?, DestroyReason::Requested),
                Some(lease) => {
                    let held = self.held(session)?.filter(|held| self.reported(*held) == Some(lease));
                    (held, DestroyReason::Released)
                }
            };
            if let Some(held) = held {
                self.log(held, None, SessionEvent::destroyed(*session, reason, held))?;
            }
            answers.push(held.is_some());
        }
        Ok(self.answers(answers))
    }

    /// Ends a lease. `destroyed` counts its sessions as they are destroyed.
    pub(super) fn revoke(
        &mut self,
        lease: LeaseId,
        destroyed: Arc<AtomicU64>,
    ) -> Result<Result<(), StorageError>, redb::Error> {
        if self.memory.leases.standing(lease) == Standing::Ended {
            return Ok(Err(StorageError::UnknownLease(lease)));
        }
        self.end_lease(lease, DestroyReason::LeaseRevoked, destroyed)?;
        Ok(Ok(()))
    }

    /// Destroys some sessions of an ended lease. Returns whether there may be more.
    pub(super) fn sweep(&mut self, lease: LeaseId) -> Result<bool, redb::Error> {
        let Some((reason, destroyed)) = self.memory.leases.ended(lease) else { return Ok(false) };
        let number = lease.number();
        let rows = self.tables.under.range((number, i64::MIN, i64::MIN)..=(number, i64::MAX, i64::MAX))?;
        let some = rows.take(SESSIONS_A_SWEEP).map(|row| row.map(|(row, _)| row.value()));
        let some = some.collect::<Result<Vec<_>, _>>()?;
        for (_, auth_key, session) in &some {
            let session = SessionKey::new(*auth_key, *session);
            self.log(Some(lease), None, SessionEvent::destroyed(session, reason, Some(lease)))?;
        }
        destroyed.fetch_add(some.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let has_more = some.len() == SESSIONS_A_SWEEP;
        if !has_more {
            self.forget_lease(lease)?;
        }
        Ok(has_more)
    }

    /// Ends the leases that are due, and destroys some sessions of ended leases. Returns whether no ended lease is
    /// left.
    pub(super) fn expire(&mut self) -> Result<bool, redb::Error> {
        while let Some((lease, reason)) = self.memory.leases.next_due() {
            self.end_lease(lease, reason, Arc::default())?;
        }
        for lease in self.memory.leases.next_ended(SWEEPS_A_STEP) {
            self.sweep(lease)?;
        }
        if self.memory.last_change.elapsed() > PROBE_INTERVAL {
            self.tables.meta.insert("probe", 0)?;
            self.change();
        }
        Ok(!self.memory.leases.has_ended())
    }

    pub(super) fn session_count(&self) -> Result<u64, redb::Error> {
        Ok(self.tables.sessions.len()?)
    }

    /// Returns the mark at a position. `None` if the position is beyond the end of the log, or its mark was removed.
    pub(super) fn mark(&self, position: Position) -> Result<Option<Mark>, redb::Error> {
        if position.0 > self.memory.end {
            return Ok(None);
        }
        Ok(self.tables.marks.range(..=position.0)?.next_back().transpose()?.map(|(_, mark)| Mark(mark.value())))
    }

    fn point(&self, position: u64) -> Result<LogPoint, redb::Error> {
        let position = Position(position);
        // All positions from the start of the log on have a mark.
        Ok(LogPoint { position, mark: self.mark(position)?.unwrap_or_default() })
    }

    pub(super) fn extent(&self) -> Result<LogExtent, redb::Error> {
        let held = self.point(self.memory.start)?..self.point(self.memory.end)?;
        Ok(LogExtent::new(self.memory.registry_id, vec![held]))
    }

    /// Returns the changes after a point. `None` if there are none yet.
    pub(super) fn changes(
        &self,
        registry_id: RegistryId,
        after: LogPoint,
        limit: usize,
    ) -> Result<Result<Option<Changes>, LogError>, redb::Error> {
        let Memory { start, end, .. } = *self.memory;
        if registry_id == self.memory.registry_id && after.position.0 < start {
            return Ok(Err(LogError::Trimmed));
        }
        if !self.contains(registry_id, after)? {
            return Ok(Err(LogError::Restarted));
        }
        if after.position.0 == end {
            return Ok(Ok(None));
        }
        let rows = self.tables.log.range(after.position.0 + 1..)?.take(limit.max(1));
        let events = rows.map(|row| row.map(|(_, row)| event(row.value()))).collect::<Result<Vec<_>, _>>()?;
        let mark = self.point(after.position.0 + events.len() as u64)?.mark;
        Ok(Ok(Some(Changes::new(events, mark))))
    }

    fn contains(&self, registry_id: RegistryId, point: LogPoint) -> Result<bool, redb::Error> {
        Ok(registry_id == self.memory.registry_id && self.mark(point.position)? == Some(point.mark))
    }

    /// Returns whether the log contains the point up to which the caller has read it.
    fn is_known(&self, registry_id: RegistryId, known: &[LogPoint]) -> Result<bool, redb::Error> {
        match known {
            [point] => self.contains(registry_id, *point),
            _ => Ok(false),
        }
    }

    pub(super) fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<Result<LeaseBuckets, LogError>, redb::Error> {
        if !self.is_known(registry_id, known)? {
            return Ok(Err(LogError::Restarted));
        }
        let mut buckets = BTreeSet::new();
        for lease in leases {
            let number = lease.number();
            for row in self.tables.under.range((number, i64::MIN, i64::MIN)..=(number, i64::MAX, i64::MAX))? {
                let (_, auth_key, session) = row?.0.value();
                buckets.insert(tables::bucket_of(&SessionKey::new(auth_key, session)));
            }
        }
        let points = vec![self.point(self.memory.end)?];
        Ok(Ok(LeaseBuckets::new(points, buckets.into_iter().collect())))
    }

    pub(super) fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<Result<BucketRun, LogError>, redb::Error> {
        if !self.is_known(registry_id, known)? {
            return Ok(Err(LogError::Restarted));
        }
        let point = self.point(self.memory.end)?;
        let mut run = BucketRun::default();
        for bucket in buckets {
            for row in self.tables.sessions.range((*bucket, i64::MIN, i64::MIN)..=(*bucket, i64::MAX, i64::MAX))? {
                let (row, lease) = row?;
                let (_, auth_key, session) = row.value();
                run.sessions.push(SessionKey::new(auth_key, session));
                if with_leases {
                    run.leases.push(LeaseId::from_number(lease.value()));
                }
            }
            run.points.push(point);
            if run.sessions.len() >= limit.max(1) {
                break;
            }
        }
        Ok(Ok(run))
    }
}
