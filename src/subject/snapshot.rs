//! Snapshots: an observer's progress through one, and which changes it must skip so that the snapshot is exact.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    Inner, Update,
    cursor::Points,
    filter::Filter,
    log::{Chunk, EVENTS_A_CHUNK, Place},
    storage_stats::StorageOperation,
};
use crate::{
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{BucketRun, LeaseBuckets, LogError, LogPoint, RegistryId},
};

/// How many sessions one read returns at most, plus one bucket. A stuck observer holds on to no more than this during a
/// snapshot.
const SESSIONS_PER_READ: usize = EVENTS_A_CHUNK;

/// How long to wait before a failed read is retried.
const RETRY: Duration = Duration::from_millis(500);

/// The events of a chunk that one observer receives.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) events: Vec<SessionEvent>,
    /// The position of the last of these events.
    pub(super) last: u64,
}

/// Removes the sessions of a run that do not pass a filter by id.
fn choose_sessions(run: &mut BucketRun, filter: &Filter) {
    if filter.has_placements() {
        let all = run.sessions.drain(..).zip(run.leases.drain(..));
        let (sessions, leases) = all.filter(|(session, lease)| filter.passes_placement(session, *lease)).unzip();
        (run.sessions, run.leases) = (sessions, leases);
    } else {
        run.sessions.retain(|session| filter.passes_session(session));
        run.sessions.shrink_to_fit();
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Read, LogError>> + Send>>;

/// The result of one read.
enum Read {
    Buckets(LeaseBuckets),
    Run(BucketRun),
}

/// The maximum number of buckets named in one read.
const BUCKETS_PER_READ: usize = 1024;

/// A snapshot in progress.
///
/// The buckets are read in runs, each at a position of its own. After each run the observer follows the log until it
/// has passed these positions, and only then reads the next run. Meanwhile, whether it receives a change depends on the
/// bucket:
///
/// - bucket of an earlier run: received, because the bucket was read before the change;
/// - bucket of this run: received if the change is after the position at which the bucket was read;
/// - bucket of a later run: skipped, because the bucket will be read after the change.
///
/// An observer that filters by lease first asks which buckets have sessions under these leases, at a position of its
/// own. All other buckets count as read at that position, because they held nothing that passes the filter.
pub(super) struct Snapshot {
    inner: Arc<Inner>,
    registry_id: RegistryId,
    /// Where in the log the snapshot started. Buckets are read only from a registry whose log contains everything
    /// followed since.
    began: Place,
    /// The buckets to read. `None` for all.
    chosen: Option<LeaseBuckets>,
    /// Where the current run starts: an index into the buckets to read. The observer has passed all earlier buckets.
    first: usize,
    /// The point at which each bucket of the run was read.
    points: Vec<LogPoint>,
    /// Sessions that were read and not returned yet.
    sessions: Vec<SessionKey>,
    /// The lease of each of these sessions, for an observer with placements.
    leases: Vec<Option<LeaseId>>,
    reading: Option<Reading>,
    held: u64,
}

impl Snapshot {
    pub(super) fn new(inner: Arc<Inner>, registry_id: RegistryId, began: Place) -> Self {
        let (points, sessions, leases) = (Vec::new(), Vec::new(), Vec::new());
        Self { inner, registry_id, began, chosen: None, first: 0, points, sessions, leases, reading: None, held: 0 }
    }

    /// Returns how many sessions the observer holds, of those that pass the filter by id.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Returns whether the run has sessions that were not returned yet.
    pub(super) fn has_sessions(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Returns the next sessions of the run, if any are left.
    pub(super) fn take(&mut self, filter: &Filter) -> Option<Update> {
        let rest = self.sessions.len().saturating_sub(EVENTS_A_CHUNK);
        let part = self.sessions.split_off(rest);
        if part.is_empty() {
            return None;
        }
        self.held += part.len() as u64;
        Some(if filter.has_placements() {
            Update::Placements(part.into_iter().zip(self.leases.split_off(rest)).collect())
        } else {
            Update::Snapshot(part)
        })
    }

    /// Returns whether an observer at `at` has passed the positions of the run, and those at which its buckets were
    /// chosen.
    pub(super) fn is_passed(&self, at: &Points) -> bool {
        let chosen_at = self.chosen.iter().flat_map(|chosen| &chosen.points);
        let has_passed = |(at, chosen): (&LogPoint, &LogPoint)| at.position >= chosen.position;
        at.iter().zip(chosen_at).all(has_passed)
            && (self.first..).zip(&self.points).all(|(nth, point)| {
                let partition = self.inner.storage.partition_of(self.bucket(nth));
                at[partition as usize].position >= point.position
            })
    }

    /// Returns whether this run is the last.
    pub(super) fn is_last(&self, filter: &Filter) -> bool {
        self.is_chosen(filter) && self.first + self.points.len() >= self.bucket_count()
    }

    /// Returns whether the buckets to read are known.
    fn is_chosen(&self, filter: &Filter) -> bool {
        filter.lease_ids.is_empty() || self.chosen.is_some()
    }

    /// Returns the number of buckets to read.
    fn bucket_count(&self) -> usize {
        let all = self.inner.storage.layout().buckets as usize;
        self.chosen.as_ref().map_or(all, |chosen| chosen.buckets.len())
    }

    /// Returns the nth bucket to read.
    fn bucket(&self, nth: usize) -> u32 {
        self.chosen.as_ref().map_or(nth as u32, |chosen| chosen.buckets[nth])
    }

    /// Returns the index of a bucket among the buckets to read.
    fn nth_of(&self, bucket: u32) -> Option<usize> {
        match &self.chosen {
            Some(chosen) => chosen.buckets.binary_search(&bucket).ok(),
            None => Some(bucket as usize),
        }
    }

    /// Reads the next run. Retries while the storage cannot be read.
    pub(super) fn poll_read(&mut self, filter: &Filter, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let reading = self.reading.take().unwrap_or_else(|| self.read(filter, Duration::ZERO));
            match ready!(self.reading.insert(reading).as_mut().poll(context)) {
                Ok(Read::Buckets(chosen)) => {
                    self.reading = None;
                    self.chosen = Some(chosen);
                    return Poll::Ready(());
                }
                Ok(Read::Run(mut run)) => {
                    if filter.is_by_id() {
                        choose_sessions(&mut run, filter);
                    }
                    self.reading = None;
                    self.first += self.points.len();
                    self.points = run.points;
                    self.sessions = run.sessions;
                    self.leases = run.leases;
                    return Poll::Ready(());
                }
                // After `Restarted` the follower will also find that the log was lost, and end this snapshot. Until
                // then nothing is read.
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, "reading a snapshot from the storage failed; retrying");
                    self.reading = Some(self.read(filter, RETRY));
                }
            }
        }
    }

    fn read(&self, filter: &Filter, pause: Duration) -> Reading {
        let with_leases = filter.has_placements();
        let leases: Vec<_> =
            if self.is_chosen(filter) { Vec::new() } else { filter.lease_ids.iter().copied().collect() };
        let next = self.first + self.points.len();
        let end = self.bucket_count().min(next + BUCKETS_PER_READ);
        let buckets: Vec<_> = (next..end).map(|nth| self.bucket(nth)).collect();
        let (inner, registry_id, began) = (Arc::clone(&self.inner), self.registry_id, self.began);
        Box::pin(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let known = inner.feed.log.known(began).ok_or(LogError::Restarted)?;
            if !leases.is_empty() {
                let buckets = inner.storage.buckets_under(registry_id, &known, &leases);
                return inner.storage_stats.measure(StorageOperation::BucketsUnder, buckets).await.map(Read::Buckets);
            }
            let run = inner.storage.read_buckets(registry_id, &known, &buckets, SESSIONS_PER_READ, with_leases);
            inner.storage_stats.measure(StorageOperation::ReadBuckets, run).await.map(Read::Run)
        })
    }

    /// Returns the events of a chunk that the observer receives during this snapshot.
    pub(super) fn choose(&mut self, chunk: &Chunk, filter: &Filter) -> Chosen {
        let mut chosen = Chosen::default();
        for (position, event) in (chunk.first.0..).zip(&*chunk.events) {
            if !filter.passes_by_id(event) {
                continue;
            }
            let bucket = self.inner.storage.bucket_of(&event.session);
            let read_at = match (self.nth_of(bucket), &self.chosen) {
                (Some(nth), _) if nth < self.first => None,
                (Some(nth), _) => Some(self.points.get(nth - self.first)),
                (None, Some(chosen)) => Some(chosen.points.get(chunk.partition as usize)),
                (None, None) => Some(None),
            };
            // Changes in buckets that are yet to be read are skipped.
            let is_received =
                read_at.is_none_or(|read_at| read_at.is_some_and(|read_at| position > read_at.position.0));
            if !is_received {
                continue;
            }
            let holds = |lease| u64::from(filter.passes_placement(&event.session, lease));
            let (before, after) = match event.change {
                SessionChange::Created => (0, 1),
                SessionChange::Destroyed(_) => (1, 0),
                SessionChange::Moved { previous } => (holds(previous), holds(event.lease)),
            };
            self.held = (self.held + after).saturating_sub(before);
            if filter.passes_change(event.change) {
                chosen.events.push(*event);
                chosen.last = position;
            }
        }
        chosen
    }
}
