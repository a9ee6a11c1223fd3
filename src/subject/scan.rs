//! Shares the reads of snapshots between the observers that take one at the same time.

use std::{
    collections::BTreeMap,
    future::Future,
    num::NonZeroU32,
    ops::Range,
    sync::{Arc, Weak},
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{
    counts::RunCounts, cursor::Points, log::Place, ranges::Ranges, reading::Reading, run::Run,
    snapshot::SESSIONS_PER_READ,
};
use crate::storage::{LogPoint, SessionStorage};

/// If what an observer has read consists of this many ranges, it reads the next buckets itself instead of leaving them
/// out.
const MAX_RANGES: usize = 64;

/// The maximum number of buckets in a run.
pub(super) const BUCKETS_A_RUN: u32 = 1024;

/// A read ends once it has more than this many sessions, even if buckets of its group are left.
pub(super) const MAX_SESSIONS: usize = 2 * SESSIONS_PER_READ;

/// The runs that the observers in a snapshot share.
///
/// The buckets form a ring, and one read follows the other. The newest runs are kept. An observer takes any of them that
/// it can use, in their order as far as possible. Only if there is none does it read, where the last read ended. It takes
/// the buckets that it has left out in a later round. So there is one sequence of reads for all observers, however slow
/// each is.
///
/// A run is a group of consecutive buckets, and the groups stay the same while sessions come and go. Otherwise the runs
/// of two observers would begin at different buckets, and none would fit the other.
pub(super) struct Scan {
    buckets: u32,
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of snapshots in progress.
    snapshots: usize,
    /// The number of reads begun, which numbers them.
    reads: u64,
    /// The bucket after those that were read last.
    next: u32,
    /// How many buckets form a group. 0 if the next read is to find out how many fit into a run.
    group: u32,
    /// The newest read of the runs, by their first bucket.
    runs: BTreeMap<u32, Entry>,
    /// The first buckets of the runs that are kept, by the number of their read.
    kept: BTreeMap<u64, u32>,
    /// The bytes that the kept runs take.
    bytes: usize,
    counts: RunCounts,
}

/// A read of a run.
struct Entry {
    number: u64,
    /// A place of the log's epoch in which it was read.
    began: Place,
    state: EntryState,
}

enum EntryState {
    /// In progress, while any observer waits for it.
    Reading(Weak<Reading>),
    Kept(Arc<Run>),
}

/// The part of an observer in a scan. It leaves when this is dropped.
pub(super) struct Joined {
    scan: Arc<Scan>,
    /// The bucket at which its snapshot starts.
    pub(super) start: u32,
}

/// What an observer needs to read next.
pub(super) struct Wanted {
    /// The buckets that it has read.
    pub(super) read: Ranges,
    /// The bucket after the last of these.
    pub(super) next: u32,
    /// Where its snapshot began.
    pub(super) began: Place,
    /// The points that a run must have reached: the observer has skipped the changes of these buckets up to there, or
    /// its client knows of them.
    pub(super) least: Points,
}

/// What an observer has to read.
pub(super) struct ToRead {
    /// The buckets of a run, or the first of these.
    pub(super) buckets: Range<u32>,
    /// Whether the run consists of all these buckets, unless they have more than [`MAX_SESSIONS`].
    pub(super) is_group: bool,
}

/// The answer to what an observer needs.
pub(super) enum Found {
    Run(Arc<Run>),
    /// Another observer has begun to read. The run may turn out not to be [usable](Wanted::can_use).
    Reading(Arc<Reading>),
    /// This observer begins the read, and must [drive](Reading::drive) it.
    Begun(Arc<Reading>, BoxFuture<'static, ()>),
}

impl Wanted {
    /// Returns whether the observer can take a run: it has not read any of the run's buckets, and the run contains every
    /// change that it must contain.
    pub(super) fn can_use(&self, run: &Run, storage: &dyn SessionStorage) -> bool {
        let is_current = |(bucket, point): (u32, &LogPoint)| {
            let least = self.least[storage.partition_of(bucket) as usize];
            !self.read.contains(bucket) && point.position >= least.position
        };
        run.buckets().zip(&run.points).all(is_current)
    }
}

/// What the runs of a snapshot contain.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// Whether they have leases.
    pub(super) is_placed: bool,
    /// Whether they consist of messages, and not of values.
    pub(super) is_encoded: bool,
}

/// The scans of a subject: one for each kind of run.
pub(super) struct Scans([Arc<Scan>; 4]);

impl Scans {
    /// Makes the scans of a storage with so many buckets. Each keeps runs of up to `max_bytes`.
    pub(super) fn new(buckets: u32, max_bytes: usize) -> Self {
        Self([(); 4].map(|()| Arc::new(Scan { buckets, max_bytes, state: Mutex::default() })))
    }

    /// Returns the scan for runs of this kind.
    pub(super) fn of(&self, kind: Kind) -> &Arc<Scan> {
        &self.0[usize::from(kind.is_placed) + 2 * usize::from(kind.is_encoded)]
    }

    /// Returns how many runs snapshots have taken.
    pub(super) fn counts(&self) -> RunCounts {
        let mut all = RunCounts::default();
        for scan in &self.0 {
            let RunCounts { read, shared } = scan.state.lock().counts;
            all.read += read;
            all.shared += shared;
        }
        all
    }
}

impl Scan {
    /// Adds an observer that starts a snapshot.
    pub(super) fn join(self: &Arc<Self>) -> Joined {
        let mut state = self.state.lock();
        state.snapshots += 1;
        Joined { scan: Arc::clone(self), start: state.next }
    }
}

impl Joined {
    /// Counts a run that another observer had read.
    pub(super) fn count_shared(&self) {
        self.scan.state.lock().counts.shared += 1;
    }

    /// Finds a run that the observer can take, or begins to read one with `read`.
    pub(super) fn find<F>(&self, wanted: &Wanted, storage: &dyn SessionStorage, read: impl FnOnce(ToRead) -> F) -> Found
    where
        F: Future<Output = Option<Run>> + Send + 'static,
    {
        let mut state = self.scan.state.lock();
        let mut buckets = wanted.read.gap(wanted.next, self.scan.buckets);
        let mut found = state.find(buckets.start, wanted, storage);
        if found.is_none() && wanted.read.count() < MAX_RANGES {
            buckets = wanted.read.gap(state.next, self.scan.buckets);
            found = state.find_kept(wanted, storage).or_else(|| state.find(buckets.start, wanted, storage));
        }
        if let Some(found) = found {
            return found;
        }
        let first = buckets.start;
        let number = state.reads;
        state.reads += 1;
        let scan = Arc::clone(&self.scan);
        let read = read(state.to_read(&buckets));
        let (reading, ending) = Reading::new();
        state.remove(first);
        let entry = EntryState::Reading(Arc::downgrade(&reading));
        state.runs.insert(first, Entry { number, began: wanted.began, state: entry });
        let read = async move {
            let run = read.await.map(Arc::new);
            scan.end(number, first, run.as_ref());
            ending.set(run);
        };
        Found::Begun(reading, Box::pin(read))
    }
}

impl Scan {
    /// Ends the read with this number. Keeps its run if there are other snapshots.
    fn end(&self, number: u64, first: u32, run: Option<&Arc<Run>>) {
        let mut state = self.state.lock();
        if let Some(run) = run {
            state.counts.read += 1;
            state.next = run.buckets().end % self.buckets;
            state.adapt(run);
        }
        let is_newest = state.runs.get(&first).is_some_and(|entry| entry.number == number);
        if !is_newest {
            return;
        }
        match run {
            Some(run) if state.snapshots > 1 => state.keep(number, first, Arc::clone(run), self.max_bytes),
            _ => state.remove(first),
        }
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        state.snapshots -= 1;
        if state.snapshots == 0 {
            *state = State { reads: state.reads, counts: state.counts, ..State::default() };
        }
    }
}

impl State {
    /// Returns a run with this first bucket, or the read of one.
    fn find(&self, first: u32, wanted: &Wanted, storage: &dyn SessionStorage) -> Option<Found> {
        let entry = self.runs.get(&first).filter(|entry| entry.began.is_of_epoch(wanted.began))?;
        match &entry.state {
            EntryState::Kept(run) => wanted.can_use(run, storage).then(|| Found::Run(Arc::clone(run))),
            EntryState::Reading(reading) => reading.upgrade().map(Found::Reading),
        }
    }

    /// Returns the oldest run that the observer can take: it will not be kept for long.
    fn find_kept(&self, wanted: &Wanted, storage: &dyn SessionStorage) -> Option<Found> {
        self.kept.values().find_map(|first| self.find(*first, wanted, storage))
    }

    /// Returns which of the wanted buckets to read: up to the next multiple of the group's size.
    fn to_read(&self, wanted: &Range<u32>) -> ToRead {
        let size = NonZeroU32::new(self.group);
        let end = size.map_or(wanted.end, |size| (wanted.start / size + 1) * size.get());
        let end = end.min(wanted.end).min(wanted.start + BUCKETS_A_RUN);
        ToRead { buckets: wanted.start..end, is_group: size.is_some() }
    }

    /// Chooses another size for the groups if a run is far too small or too large.
    fn adapt(&mut self, run: &Run) {
        let (buckets, sessions) = (run.buckets().len() as u32, run.sessions());
        let is_small = buckets == self.group && sessions < SESSIONS_PER_READ / 4;
        if self.group == 0 {
            self.group = buckets;
        } else if is_small || sessions > MAX_SESSIONS {
            self.group = 0;
        }
    }

    fn keep(&mut self, number: u64, first: u32, run: Arc<Run>, max_bytes: usize) {
        self.bytes += run.bytes();
        self.kept.insert(number, first);
        if let Some(entry) = self.runs.get_mut(&first) {
            entry.state = EntryState::Kept(run);
        }
        while self.bytes > max_bytes {
            let Some((_, oldest)) = self.kept.pop_first() else { break };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, first: u32) {
        if let Some(Entry { number, state: EntryState::Kept(run), .. }) = self.runs.remove(&first) {
            self.bytes -= run.bytes();
            self.kept.remove(&number);
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.scan.leave();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        session::SessionKey,
        storage::{
            BucketRun, LogExtent, LogPoint, Position, RegistryId,
            memory::{MemoryOptions, MemoryStorage},
        },
        subject::log::{EventLog, Retention},
    };

    const BUCKETS: u32 = 64;
    const MAX_BYTES: usize = 32 << 20;

    /// A run of one bucket, read at the position `at`, that takes about a megabyte.
    fn large(first: u32, at: u64) -> Run {
        let sessions = vec![SessionKey::new(0, 1); 1 << 16];
        let points = vec![LogPoint { position: Position(at), ..LogPoint::default() }];
        Run::plain(first, BucketRun { points, sessions, leases: Vec::new() })
    }

    fn place() -> Place {
        let extent = LogExtent::new(RegistryId(1), vec![LogPoint::default()..LogPoint::default()]);
        EventLog::new(Retention { events: 1, bytes: 1 }, &extent).head().place
    }

    /// Looks for a run that was read at or after this position, for an observer that has read these buckets.
    fn find(joined: &Joined, read: Range<u32>, at: u64, storage: &MemoryStorage) -> Found {
        let least = std::iter::once(LogPoint { position: Position(at), ..LogPoint::default() }).collect();
        let mut wanted = Wanted { read: Ranges::default(), next: read.end, began: place(), least };
        wanted.read.insert(read);
        joined.find(&wanted, storage, move |run| std::future::ready(Some(large(run.buckets.start, at))))
    }

    /// Reads a run at the position `at`.
    fn begin(joined: &Joined, read: Range<u32>, at: u64, storage: &MemoryStorage) {
        let found = find(joined, read.clone(), at, storage);
        let Found::Begun(reading, driver) = found else { panic!("{read:?} was not all") };
        reading.drive(driver);
        assert!(reading.outcome().now_or_never().unwrap().is_some());
    }

    #[test]
    fn what_is_kept_for_others_is_bounded() {
        let storage = MemoryStorage::new(MemoryOptions::default().buckets(BUCKETS));
        let scans = Scans::new(BUCKETS, MAX_BYTES);
        let scan = &scans.0[0];
        let (first, second) = (scan.join(), scan.join());
        for bucket in 0..BUCKETS {
            begin(&first, 0..bucket, 0, &storage);
            assert!(scan.state.lock().bytes <= MAX_BYTES);
        }
        assert!(scan.state.lock().bytes > MAX_BYTES * 3 / 4);
        assert!(matches!(find(&second, 0..BUCKETS - 1, 0, &storage), Found::Run(_)), "the newest runs are kept");
        // Runs that are read again replace their predecessors.
        for round in 1..4 {
            let third = scan.join();
            for bucket in 0..BUCKETS {
                begin(&third, 0..bucket, round, &storage);
                let state = scan.state.lock();
                assert!(state.bytes <= MAX_BYTES && state.runs.len() == state.kept.len(), "{}", state.bytes);
            }
        }
        drop((first, second));
        let state = scan.state.lock();
        assert_eq!((state.bytes, state.runs.len(), state.kept.len(), state.next), (0, 0, 0, 0), "none is left");
    }

    #[test]
    fn a_single_snapshot_keeps_nothing() {
        let storage = MemoryStorage::new(MemoryOptions::default().buckets(BUCKETS));
        let scans = Scans::new(BUCKETS, MAX_BYTES);
        let only = scans.0[0].join();
        begin(&only, 0..0, 0, &storage);
        let state = scans.0[0].state.lock();
        assert_eq!((state.bytes, state.runs.len(), state.next), (0, 0, 1));
    }
}
