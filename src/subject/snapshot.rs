//! Snapshots: an observer's progress through one, and which changes it must skip so that the snapshot is exact.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    Inner, Update,
    cursor::{Points, later},
    filter::Filter,
    log::{Chunk, EVENTS_A_CHUNK, Head, Place},
    ranges::Ranges,
    run::Run,
    scan::{BUCKETS_A_RUN, Found, Joined, Kind, ToRead, Wanted},
    source::Source,
};
use crate::{
    session::{SessionChange, SessionEvent},
    storage::{BucketRun, LeaseBuckets, LogPoint, RegistryId},
};

/// How many sessions one read returns at most, plus one bucket. A stuck observer holds on to no more than three times as
/// many, plus one bucket, during a snapshot.
pub(super) const SESSIONS_PER_READ: usize = EVENTS_A_CHUNK;

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

type PendingRead = BoxFuture<'static, Option<Read>>;

/// The result of one read.
enum Read {
    Buckets(LeaseBuckets),
    /// What was read for an observer that filters by id.
    Own(BucketRun),
    Run(Arc<Run>),
}

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
/// Observers without a filter by id share the runs that are read while they are in a snapshot: see [`Scan`].
///
/// An observer that filters by lease first asks which buckets have sessions under these leases, at a position of its
/// own. All other buckets count as read at that position, because they held nothing that passes the filter.
pub(super) struct Snapshot {
    inner: Arc<Inner>,
    registry_id: RegistryId,
    /// Where in the log the snapshot started. Buckets are read only from a registry whose log contains everything
    /// followed since.
    began: Place,
    kind: Kind,
    /// The scan that this snapshot shares. `None` if the filter names ids.
    joined: Option<Arc<Joined>>,
    /// The points that every run must have reached: the observer's client may know of the changes up to there.
    least: Points,
    /// The buckets to read. `None` for all.
    chosen: Option<LeaseBuckets>,
    /// The buckets of the runs that the observer has passed, as indexes into the buckets to read.
    read: Ranges,
    /// The current run.
    run: Arc<Run>,
    /// How many parts of the run were returned.
    returned: usize,
    reading: Option<PendingRead>,
    held: u64,
}

impl Snapshot {
    /// Begins a snapshot at the end of the log. Every run must have reached the points `least`.
    pub(super) fn new(inner: Arc<Inner>, head: &Head, least: Points, kind: Kind, filter: &Filter) -> Self {
        let joined = (!filter.is_by_id()).then(|| Arc::new(inner.scans.of(kind).join()));
        let first = joined.as_ref().map_or(0, |joined| joined.start);
        let run = Arc::new(Run::empty(first));
        Self {
            inner,
            registry_id: head.registry_id,
            began: head.place,
            kind,
            joined,
            least,
            chosen: None,
            read: Ranges::default(),
            run,
            returned: 0,
            reading: None,
            held: 0,
        }
    }

    /// Returns how many sessions the observer holds, of those that pass the filter by id.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Returns whether the run has sessions that were not returned yet.
    pub(super) fn has_sessions(&self) -> bool {
        self.returned < self.run.parts.len()
    }

    /// Returns the next sessions of the run, if any are left.
    pub(super) fn take(&mut self) -> Option<Update> {
        let part = self.run.parts.get(self.returned)?.clone();
        self.returned += 1;
        self.held += part.count() as u64;
        Some(Update::Snapshot(part))
    }

    /// Returns whether an observer at `at` has passed the positions of the run, and those at which its buckets were
    /// chosen.
    pub(super) fn is_passed(&self, at: &Points) -> bool {
        let chosen_at = self.chosen.iter().flat_map(|chosen| &chosen.points);
        let has_passed = |(at, chosen): (&LogPoint, &LogPoint)| at.position >= chosen.position;
        at.iter().zip(chosen_at).all(has_passed)
            && self.run.buckets().zip(&self.run.points).all(|(nth, point)| {
                let partition = self.inner.storage.partition_of(self.bucket(nth));
                at[partition as usize].position >= point.position
            })
    }

    /// Returns whether this run is the last.
    pub(super) fn is_last(&self, filter: &Filter) -> bool {
        self.is_chosen(filter) && self.read.len() + self.run.points.len() >= self.bucket_count() as usize
    }

    /// Returns whether the buckets to read are known.
    fn is_chosen(&self, filter: &Filter) -> bool {
        filter.lease_ids.is_empty() || self.chosen.is_some()
    }

    /// Returns the number of buckets to read.
    fn bucket_count(&self) -> u32 {
        let all = self.inner.storage.layout().buckets;
        self.chosen.as_ref().map_or(all, |chosen| chosen.buckets.len() as u32)
    }

    /// Returns the nth bucket to read.
    fn bucket(&self, nth: u32) -> u32 {
        self.chosen.as_ref().map_or(nth, |chosen| chosen.buckets[nth as usize])
    }

    /// Returns the index of a bucket among the buckets to read.
    fn nth_of(&self, bucket: u32) -> Option<u32> {
        match &self.chosen {
            Some(chosen) => chosen.buckets.binary_search(&bucket).ok().map(|nth| nth as u32),
            None => Some(bucket),
        }
    }

    /// Reads the next run for an observer at these points of the log. It must stay there until this is ready. Retries
    /// while the storage cannot be read.
    pub(super) fn poll_read(&mut self, filter: &Filter, at: &Points, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let reading = self.reading.take().unwrap_or_else(|| self.read(filter, at));
            let read = ready!(self.reading.insert(reading).as_mut().poll(context));
            self.reading = None;
            match read {
                Some(Read::Buckets(chosen)) => self.chosen = Some(chosen),
                Some(Read::Own(mut read)) => {
                    choose_sessions(&mut read, filter);
                    self.start_run(Arc::new(self.inner.feed.run(self.run.buckets().end, read, self.kind)));
                }
                Some(Read::Run(run)) => self.start_run(run),
                None => {
                    let again = self.read(filter, at);
                    self.reading = Some(Box::pin(async move {
                        tokio::time::sleep(RETRY).await;
                        again.await
                    }));
                    continue;
                }
            }
            return Poll::Ready(());
        }
    }

    fn start_run(&mut self, run: Arc<Run>) {
        self.read.insert(self.run.buckets());
        self.run = run;
        self.returned = 0;
    }

    fn read(&self, filter: &Filter, at: &Points) -> PendingRead {
        let Self { registry_id, began, kind, .. } = *self;
        let inner = Arc::clone(&self.inner);
        let source = Source { inner: Arc::clone(&inner), registry_id, began, kind };
        if !self.is_chosen(filter) {
            let leases = filter.lease_ids.iter().copied().collect();
            return Box::pin(async move { source.buckets_under(leases).await.map(Read::Buckets) });
        }
        let next = self.run.buckets().end;
        let Some(joined) = &self.joined else {
            let end = self.bucket_count().min(next + BUCKETS_A_RUN);
            let buckets = (next..end).map(|nth| self.bucket(nth)).collect();
            return Box::pin(async move { source.read(buckets).await.map(Read::Own) });
        };
        let joined = Arc::clone(joined);
        let mut read = self.read.clone();
        read.insert(self.run.buckets());
        let mut least = later(at, &self.least);
        // The runs of others may be true at this place for long. Before the place is lost, a new run leads away from it.
        if inner.feed.log.is_old(at) {
            least = later(&least, &inner.feed.log.head().points);
        }
        let wanted = Wanted { read, next, began, least };
        Box::pin(async move {
            loop {
                let read = |run: ToRead| source.clone().read_run(run);
                let run = match joined.find(&wanted, &*inner.storage, read) {
                    Found::Begun(reading, read) => {
                        reading.drive(read);
                        return reading.outcome().await.map(Read::Run);
                    }
                    Found::Reading(reading) => {
                        let run = reading.outcome().await?;
                        if !wanted.can_use(&run, &*inner.storage) {
                            continue;
                        }
                        run
                    }
                    Found::Run(run) => run,
                };
                joined.count_shared();
                return Some(Read::Run(run));
            }
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
            let buckets = self.run.buckets();
            let read_at = match (self.nth_of(bucket), &self.chosen) {
                (Some(nth), _) if self.read.contains(nth) => None,
                (Some(nth), _) if buckets.contains(&nth) => Some(self.run.points.get((nth - buckets.start) as usize)),
                (Some(_), _) => Some(None),
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
