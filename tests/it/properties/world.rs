//! Plays a history on a storage with replicas, observers, and the model.

mod calls;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use sessiond::{
    session::LeaseId,
    storage::{
        SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
    subject::{Cursor, Filter, ObserveOptions, SessionSubject, Start, SubjectOptions},
};
use tokio::time::Instant;

use super::{
    Fixture,
    checker::{Broken, Promise, Started, Trace},
    concurrent::read_to_end,
    faulty::Tamper,
    history::{From, NEWEST, Shape, Step, all_sessions, create_options, resolve_leases},
    message::Content,
    model::Model,
    replica::Replica,
    watcher::Watcher,
};

/// How often leases are checked at least, as in real time.
const TICK: Duration = Duration::from_millis(100);

pub(crate) struct World {
    is_paused: bool,
    shape: Shape,
    /// The storage as each replica sees it.
    storages: Vec<Arc<dyn SessionStorage>>,
    options: SubjectOptions,
    pub(crate) model: Model,
    pub(crate) replicas: Vec<Replica>,
    /// The watchers, each with the number of its replica.
    watchers: Vec<(usize, Watcher)>,
    /// The traces of the watchers that have left.
    traces: Vec<Trace>,
    cursors: Vec<Cursor>,
    foreign: Cursor,
    leases: Vec<LeaseId>,
    /// The leases whose end a call has reported.
    gone: BTreeSet<LeaseId>,
    broken: Vec<Broken>,
    /// How many calls were made. Calls go to the replicas in turn.
    writes: usize,
}

impl World {
    pub(crate) async fn new<F: Fixture>(fixture: &F, shape: &Shape) -> Self {
        let storage = fixture.storage(shape).await;
        let model = Model::new(Arc::clone(&storage)).await;
        let options = fixture.subject_options(shape);
        let (mut storages, mut replicas) = (Vec::new(), Vec::new());
        for number in 0..shape.replicas {
            let seen = fixture.seen(&fixture.another(&storage, shape).await);
            // In one process, only the first replica expires leases. Real replicas all do.
            let expires = number == 0 || !F::IS_PAUSED;
            replicas.push(Replica::start(Arc::clone(&seen), options, expires).await);
            storages.push(seen);
        }
        Self {
            is_paused: F::IS_PAUSED,
            shape: shape.clone(),
            storages,
            options,
            model,
            replicas,
            watchers: Vec::new(),
            traces: Vec::new(),
            cursors: Vec::new(),
            foreign: foreign_cursor(shape.partitions).await,
            leases: Vec::new(),
            gone: BTreeSet::new(),
            broken: Vec::new(),
            writes: 0,
        }
    }

    pub(crate) async fn play(&mut self, step: &Step) {
        match step {
            Step::Create { sessions, lease, only_from } => {
                self.create_with(sessions, create_options(&self.leases, *lease, *only_from)).await;
            }
            Step::Destroy { sessions, lease } => self.destroy(sessions, self.lease(*lease)).await,
            Step::Grant(ttl) => drop(self.grant(*ttl).await),
            Step::KeepAlive(lease) => {
                if let Some(lease) = self.lease(Some(*lease)) {
                    let kept = self.write(async |subject| subject.keep_lease_alive(lease).await).await;
                    self.accept(kept);
                }
            }
            Step::Revoke(lease, linger) => {
                if let Some(lease) = self.lease(Some(*lease)) {
                    let revoked = self.write(async |subject| subject.revoke_lease_with(lease, *linger).await).await;
                    match self.accept(revoked) {
                        Some(count) if !linger.is_zero() => {
                            assert_eq!(count, 0, "a lingering lease keeps its sessions")
                        }
                        Some(_) => drop(self.gone.insert(lease)),
                        None => {}
                    }
                    self.model.catch_up().await;
                }
            }
            Step::Pass(duration) => self.pass(*duration).await,
            Step::Run(times) => {
                for _ in 0..*times {
                    tokio::task::yield_now().await;
                    self.model.catch_up().await;
                }
            }
            Step::Settle(replica) => self.settle(replica % self.replicas.len()).await,
            Step::LetFollow(replica, follows) => {
                let replica = replica % self.replicas.len();
                self.replicas[replica].storage.let_follow(*follows);
            }
            Step::Restart(replica) => self.restart(replica % self.replicas.len()).await,
            Step::Join { replica, from, filter } => {
                let filter = resolve_leases(filter, &self.leases);
                self.join(replica % self.replicas.len(), *from, &filter).await;
            }
            Step::Poll { who: NEWEST, updates } => self.poll(self.watchers.len().saturating_sub(1), *updates).await,
            Step::Poll { who, updates } => self.poll(*who, *updates).await,
            Step::Leave(who) => drop(self.leave(*who)),
            Step::Resume { who, replica } => {
                if let Some((cursor, filter)) = self.leave(*who) {
                    self.observe(replica % self.replicas.len(), Start::After(cursor), &filter, Tamper::Nothing).await;
                }
            }
        }
        self.check_bounds();
        self.check_lookups().await;
    }

    /// Reads every stream to its end, and judges everything received.
    pub(crate) async fn finish(self) -> Vec<Broken> {
        self.end().await.0
    }

    /// Does the same as [`Self::finish`], and also returns every stream's trace.
    pub(crate) async fn end(mut self) -> (Vec<Broken>, Vec<Trace>) {
        self.replicas.iter().for_each(|replica| replica.storage.let_follow(true));
        loop {
            for replica in 0..self.replicas.len() {
                self.settle(replica).await;
            }
            self.check_bounds();
            for (_, watcher) in &mut self.watchers {
                watcher.drain().await;
                if !self.is_paused {
                    read_to_end(watcher, &self.model).await;
                }
            }
            // Leases may have ended meanwhile.
            if self.model.catch_up().await.is_empty() {
                break;
            }
        }
        for (_, mut watcher) in std::mem::take(&mut self.watchers) {
            watcher.trace.drained = true;
            self.keep(watcher);
        }
        for replica in self.replicas {
            let (trace, broken) = replica.end();
            self.traces.push(trace);
            self.broken.extend(broken);
        }
        for trace in &self.traces {
            let broken = trace.judge(&self.model);
            let with_trace = |broken: Broken| Broken { how: format!("{}\n{trace:?}", broken.how), ..broken };
            self.broken.extend(broken.into_iter().map(with_trace));
        }
        (self.broken, self.traces)
    }

    async fn pass(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let step = TICK.min(end - Instant::now());
            if self.is_paused {
                tokio::time::advance(step).await;
            } else {
                tokio::time::sleep(step).await;
            }
            self.model.catch_up().await;
        }
    }

    /// Lets a replica follow the log to its end, unless it is not allowed to.
    pub(crate) async fn settle(&mut self, replica: usize) {
        let all = all_sessions();
        loop {
            let exists = self.replicas[replica].subject.has(&all).await.unwrap();
            // In real time, a lease may have ended meanwhile.
            if !self.is_paused && !self.model.catch_up().await.is_empty() {
                continue;
            }
            let held = all.iter().map(|session| self.model.held().contains_key(session));
            assert_eq!(exists, held.collect::<Vec<_>>(), "{:?}", self.model);
            break;
        }
        self.check_lookups().await;
        self.replicas[replica].settle(&mut self.model).await;
    }

    async fn restart(&mut self, number: usize) {
        let closing = &self.replicas[number].subject;
        closing.close();
        assert!(closing.observe(ObserveOptions::default()).await.is_err(), "the subject is closed");
        let mut left = Vec::new();
        for (replica, mut watcher) in std::mem::take(&mut self.watchers) {
            if replica != number {
                self.watchers.push((replica, watcher));
                continue;
            }
            if self.is_paused {
                watcher.drain().await;
            } else {
                watcher.read_until_closed().await;
            }
            if !watcher.is_over() {
                self.broken.push(Broken::new(Promise::Live, "a closed stream does not end"));
            }
            left.extend(watcher.cursor().map(|cursor| (cursor, watcher.trace.filter.clone())));
            self.keep(watcher);
        }
        let next =
            Replica::start(Arc::clone(&self.storages[number]), self.options, number == 0 || !self.is_paused).await;
        let (trace, broken) = std::mem::replace(&mut self.replicas[number], next).end();
        self.traces.push(trace);
        self.broken.extend(broken);
        for (n, (cursor, filter)) in left.into_iter().enumerate() {
            self.observe(n % self.replicas.len(), Start::After(cursor), &filter, Tamper::Nothing).await;
        }
    }

    async fn join(&mut self, replica: usize, from: From, filter: &Filter) {
        let start = match from {
            From::Now => Start::Now,
            From::Snapshot => Start::Snapshot,
            From::Cursor(back) => match self.cursors.iter().rev().nth(back % self.cursors.len().max(1)) {
                Some(cursor) => Start::After(cursor.clone()),
                None => Start::Now,
            },
            From::Foreign => Start::After(self.foreign.clone()),
        };
        self.observe(replica, start, filter, Tamper::Nothing).await;
    }

    pub(crate) async fn observe(&mut self, replica: usize, start: Start, filter: &Filter, tamper: Tamper) {
        self.observe_as(replica, start.clone(), start, filter, tamper).await;
    }

    /// Starts an observer from `given` while the checker expects it to start from `asked`.
    pub(crate) async fn observe_as(
        &mut self,
        replica: usize,
        asked: Start,
        given: Start,
        filter: &Filter,
        tamper: Tamper,
    ) {
        let before = self.model.ends();
        let is_retained = match &asked {
            // A storage that shares its log may know less of it than a replica retains. Then it is unknown which
            // history a place belongs to.
            Start::After(cursor) if self.is_paused || self.shape.storage_events >= 4096 => {
                self.replicas[replica].retains(&self.model, cursor)
            }
            _ => false,
        };
        let options = ObserveOptions::from_start(given).filter(filter.clone());
        let observer = self.replicas[replica].subject.observe(options).await.unwrap();
        self.model.catch_up().await;
        let started = match asked {
            Start::Now => Started::Now { before, after: self.model.ends() },
            Start::Snapshot => Started::Snapshot,
            Start::After(cursor) => Started::After { cursor: cursor.to_string(), is_retained },
            other => panic!("{other:?} is not known to this test"),
        };
        let watcher = Watcher::new(observer, Trace::new(started, filter.clone())).tampered(tamper);
        self.watchers.push((replica, watcher));
    }

    pub(crate) async fn poll(&mut self, who: usize, updates: usize) {
        let count = self.watchers.len().max(1);
        let Some((replica, watcher)) = self.watchers.get_mut(who % count) else { return };
        let replica = &self.replicas[*replica];
        for _ in 0..updates {
            // A replica also loses its place if the storage drops changes that it has not read.
            let is_retained = self.shape.storage_events >= 4096
                && watcher.cursor().is_some_and(|cursor| replica.retains(&self.model, &cursor));
            match watcher.poll() {
                None if watcher.is_idle() => break,
                None => {
                    tokio::task::yield_now().await;
                    self.model.catch_up().await;
                }
                Some(Content::Reset(reason)) if is_retained && watcher.trace.messages.len() > 2 => {
                    let how = format!("a reset ({reason:?}) although the events are retained: {:?}", watcher.trace);
                    self.broken.push(Broken::new(Promise::Reliable, how));
                }
                Some(_) => self.cursors.extend(watcher.cursor()),
            }
        }
        self.model.catch_up().await;
    }

    /// Returns the newest cursor of any observer, or the one `back` places before it.
    pub(crate) fn cursor(&self, back: usize) -> Cursor {
        self.cursors[self.cursors.len() - 1 - back].clone()
    }

    /// Drops an observer. Returns its last cursor, if it has one.
    pub(crate) fn leave(&mut self, who: usize) -> Option<(Cursor, Filter)> {
        if self.watchers.is_empty() {
            return None;
        }
        let (_, watcher) = self.watchers.swap_remove(who % self.watchers.len());
        let cursor = watcher.cursor().filter(|_| !watcher.trace.messages.is_empty());
        let filter = watcher.trace.filter.clone();
        self.keep(watcher);
        Some((cursor?, filter))
    }

    fn keep(&mut self, watcher: Watcher) {
        let (trace, broken) = watcher.leave();
        self.broken.extend(broken);
        self.traces.push(trace);
    }

    fn check_bounds(&mut self) {
        for (number, replica) in self.replicas.iter().enumerate() {
            let observers = self.watchers.iter().filter(|(replica, _)| *replica == number).count();
            self.broken.extend(replica.check_bounds(&self.shape, &self.model, observers));
        }
    }
}

/// Returns a cursor of another registry with the same number of partitions.
pub(crate) async fn foreign_cursor(partitions: u32) -> Cursor {
    let storage = MemoryStorage::new(MemoryOptions::default().partitions(partitions));
    let subject = SessionSubject::start(Arc::new(storage), Default::default(), ()).await.unwrap();
    let observer = subject.observe(ObserveOptions::default()).await.unwrap();
    observer.cursor().unwrap()
}

/// Runs a test on a single thread. With a paused clock, time passes only when every task is idle.
pub(crate) fn run<T>(is_paused: bool, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(is_paused).build();
    runtime.unwrap().block_on(test)
}
