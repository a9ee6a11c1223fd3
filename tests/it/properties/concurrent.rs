//! Checks the same promises with truly concurrent writers and observers. Everything is judged at the end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{CreateOptions, SessionStorage, StorageError},
    subject::{Cursor, Filter, ObserveOptions, SessionSubject, Start},
};
use tokio::{sync::watch, time::timeout};

use super::{
    Fixture, Memory,
    answers::{self, Answer},
    checker::{Broken, Promise, Started, Trace},
    history::{From, Shape, Step, all_sessions, change, create_options, filter, from, one_of, resolve_leases, shape},
    message::Content,
    model::{Model, Place},
    paced::Paced,
    replica::{CHUNK_OVERHEAD, EVENTS_A_CHUNK},
    watcher::Watcher,
};
use crate::{held::plain, twisted::Twisted};

/// Far longer than anything takes. It only ends tests that hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// No lease expires within this time.
const LONG: Duration = Duration::from_secs(3600);

/// A visit of an observer: it subscribes, reads and leaves.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    from: From,
    filter: Filter,
    /// In each round, how many updates it reads and how often it then lets other tasks run.
    rounds: Vec<(usize, usize)>,
}

/// What writers and observers do concurrently.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    writers: Vec<Vec<Step>>,
    observers: Vec<Vec<Visit>>,
}

impl Plan {
    /// Returns the same plan over `replicas` replicas.
    pub(super) fn with_replicas(self, replicas: usize) -> Self {
        Self { shape: Shape { replicas, ..self.shape }, ..self }
    }
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![
        20 => change(),
        2 => Just(Step::Grant(LONG)),
        1 => (any::<usize>(), prop_oneof![Just(Duration::ZERO), Just(LONG)])
            .prop_map(|(lease, linger)| Step::Revoke(lease, linger)),
        6 => (1..4usize).prop_map(Step::Run),
    ];
    let visit = (from(), filter(), vec((0..8usize, 0..20usize), 0..8)).prop_map(|(from, filter, rounds)| Visit {
        from,
        filter,
        rounds,
    });
    (shape(), vec(vec(step, 1..60), 1..4), vec(vec(visit, 1..5), 1..6)).prop_map(|(shape, writers, observers)| Plan {
        // The model reads the whole log at the end.
        shape: Shape { storage_events: 1 << 16, replicas: 1, ..shape },
        writers,
        observers,
    })
}

/// The state that all tasks share.
struct Shared {
    truth: Arc<dyn SessionStorage>,
    /// One subject per replica. Writers and observers are spread over them.
    subjects: Vec<SessionSubject>,
    shape: Shape,
    cursors: Mutex<Vec<Cursor>>,
    leases: Mutex<Vec<LeaseId>>,
    /// The model, once all changes have been made.
    model: watch::Receiver<Option<Arc<Model>>>,
}

impl Shared {
    fn subject(&self, number: usize) -> &SessionSubject {
        &self.subjects[number % self.subjects.len()]
    }
}

pub(super) async fn run_plan(fixture: &impl Fixture, plan: &Plan) -> Vec<Broken> {
    let truth = fixture.storage(&plan.shape).await;
    let mut subjects = Vec::new();
    for _ in 0..plan.shape.replicas {
        let storage = Twisted::new(fixture.another(&truth, &plan.shape).await, Paced::new(true));
        subjects.push(SessionSubject::start(storage, plan.shape.subject_options(), ()).await.unwrap());
    }
    let (ended, model) = watch::channel(None);
    let shared = Arc::new(Shared {
        truth: Arc::clone(&truth),
        subjects,
        shape: plan.shape.clone(),
        cursors: Mutex::default(),
        leases: Mutex::default(),
        model,
    });
    let spawn_writer = |(n, steps): (usize, &Vec<Step>)| tokio::spawn(write(Arc::clone(&shared), n, steps.clone()));
    let writers: Vec<_> = plan.writers.iter().enumerate().map(spawn_writer).collect();
    let spawn_observer =
        |(n, visits): (usize, &Vec<Visit>)| tokio::spawn(observe(Arc::clone(&shared), n, visits.clone()));
    let observers: Vec<_> = plan.observers.iter().enumerate().map(spawn_observer).collect();

    let mut log = WriterLog::default();
    for writer in writers {
        let WriterLog { made, answers, broken } = writer.await.unwrap();
        log.made.extend(made);
        log.answers.extend(answers);
        log.broken.extend(broken);
    }
    // The last changes match every filter, so each observer must be woken once more.
    let all = all_sessions();
    for creates in [false, true, false] {
        log.call(shared.subject(0), creates, &all, None).await;
    }
    let mut model = Model::new(truth).await;
    model.catch_up().await;
    let WriterLog { made, answers, mut broken } = log;
    check_made(&made, &model);
    let live = model.leases().await.live;
    broken.extend(answers.iter().filter_map(|answer| answer.judge(&model, &live, false)));
    let model = Arc::new(model);
    ended.send_replace(Some(Arc::clone(&model)));
    for observer in observers {
        let (traces, breaks) = observer.await.unwrap();
        broken.extend(breaks);
        for trace in traces {
            let with_trace = |broken: Broken| Broken { how: format!("{}\n{trace:?}", broken.how), ..broken };
            broken.extend(trace.judge(&model).into_iter().map(with_trace));
        }
    }
    for subject in &shared.subjects {
        assert_eq!(subject.stats().observers, 0, "all observers have left");
    }
    broken
}

/// Checks that the changes reported by calls were logged. Changes by the end of a lease are left out.
fn check_made(made: &[SessionEvent], model: &Model) {
    let count = |events: &mut dyn Iterator<Item = SessionEvent>| {
        let mut counts: HashMap<_, usize> = HashMap::new();
        events.for_each(|event| *counts.entry((event.session, event.change)).or_default() += 1);
        counts
    };
    let by_call = |event: &&SessionEvent| event.change != SessionChange::Destroyed(DestroyReason::LeaseRevoked);
    let logged = count(&mut model.changes().filter(by_call).filter_map(plain));
    assert_eq!(count(&mut made.iter().copied()), logged);
}

/// What the calls of a writer returned.
#[derive(Default)]
struct WriterLog {
    /// The changes that calls reported, without moves.
    made: Vec<SessionEvent>,
    answers: Vec<Answer>,
    broken: Vec<Broken>,
}

impl WriterLog {
    /// Creates or destroys sessions.
    async fn call(&mut self, subject: &SessionSubject, creates: bool, sessions: &[SessionKey], lease: Option<LeaseId>) {
        if creates {
            return self.create(subject, sessions, lease.into()).await.unwrap();
        }
        let destroyed = subject.destroy_with(sessions, lease).await.unwrap();
        self.answers.extend(answers::of_destroy(sessions, lease, &destroyed));
        let reason = DestroyReason::Requested;
        let gone = sessions.iter().zip(&destroyed.sessions).filter(|(_, destroyed)| **destroyed);
        self.made.extend(gone.map(|(session, _)| SessionEvent::destroyed(*session, reason, None)));
    }

    async fn create(
        &mut self,
        subject: &SessionSubject,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<(), StorageError> {
        let created = subject.create_with(sessions, options).await?;
        self.answers.extend(answers::of_create(sessions, &created));
        let new = sessions.iter().zip(&created.sessions).filter(|(_, creation)| creation.created);
        self.made.extend(new.map(|(session, _)| SessionEvent::created(*session, None)));
        Ok(())
    }
}

/// Tolerates a refusal by a lease that has ended or lingers.
fn tolerate_refusal<R>(result: Result<R, StorageError>) {
    if let Err(error) = result {
        assert!(matches!(error, StorageError::UnknownLease(_) | StorageError::LeaseLingers(_)), "{error}");
    }
}

async fn write(shared: Arc<Shared>, number: usize, steps: Vec<Step>) -> WriterLog {
    let mut log = WriterLog::default();
    let subject = shared.subject(number);
    let lease = |number: Option<usize>| one_of(&shared.leases.lock().unwrap(), number?);
    for step in steps {
        match step {
            // One session at a time: if a lease is revoked during a batch, it is unknown what the batch changed before.
            Step::Create { sessions, lease: number @ Some(_), only_from } => {
                for session in sessions {
                    let options = create_options(&shared.leases.lock().unwrap(), number, only_from);
                    tolerate_refusal(log.create(subject, &[session], options).await);
                }
            }
            Step::Create { sessions, lease: None, .. } => log.call(subject, true, &sessions, None).await,
            Step::Destroy { sessions, lease: number } => log.call(subject, false, &sessions, lease(number)).await,
            Step::Grant(ttl) => {
                let granted = subject.grant_lease(ttl, "writer").await.unwrap();
                shared.leases.lock().unwrap().push(granted);
            }
            Step::Revoke(number, linger) => {
                if let Some(lease) = lease(Some(number)) {
                    tolerate_refusal(subject.revoke_lease_with(lease, linger).await);
                }
            }
            Step::Run(times) => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
            step => panic!("writers have no step {step:?}"),
        }
        log.broken.extend(check_bounds(&shared, number));
    }
    log
}

fn check_bounds(shared: &Shared, number: usize) -> Option<Broken> {
    let stats = shared.subject(number).stats();
    let is_within = stats.retained_events <= shared.shape.retain_events + EVENTS_A_CHUNK
        && stats.retained_bytes
            <= shared.shape.retain_bytes + EVENTS_A_CHUNK * size_of::<SessionEvent>() + CHUNK_OVERHEAD;
    (!is_within).then(|| Broken::new(Promise::Bounded, format!("{stats:?}")))
}

async fn observe(shared: Arc<Shared>, observer: usize, visits: Vec<Visit>) -> (Vec<Trace>, Vec<Broken>) {
    let mut traces = Vec::new();
    let mut broken = Vec::new();
    let count = visits.len();
    for (number, visit) in visits.into_iter().enumerate() {
        // Each visit goes to another replica, with any observer's cursor.
        let filter = resolve_leases(&visit.filter, &shared.leases.lock().unwrap());
        let mut watcher = join(&shared, observer + number, visit.from, filter).await;
        for (updates, pauses) in visit.rounds {
            for _ in 0..updates {
                let update = watcher.poll();
                shared.cursors.lock().unwrap().extend(update.and_then(|_| watcher.cursor()));
            }
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
        }
        if number + 1 == count {
            let model = shared.model.clone().wait_for(Option::is_some).await.unwrap().clone().unwrap();
            read_to_end(&mut watcher, &model).await;
        }
        let (trace, breaks) = watcher.leave();
        traces.push(trace);
        broken.extend(breaks);
    }
    (traces, broken)
}

async fn join(shared: &Shared, replica: usize, from: From, filter: Filter) -> Watcher {
    let ends = async || {
        let extent = shared.truth.log().await.unwrap();
        extent.partitions.iter().map(|held| held.end.position.0).collect::<Vec<_>>()
    };
    let cursor = match from {
        From::Cursor(back) => {
            let cursors = shared.cursors.lock().unwrap();
            cursors.iter().rev().nth(back % cursors.len().max(1)).cloned()
        }
        _ => None,
    };
    let start = match (from, cursor) {
        (_, Some(cursor)) => Start::After(cursor),
        (From::Snapshot | From::Foreign, None) => Start::Snapshot,
        (From::Now | From::Cursor(_), None) => Start::Now,
    };
    let before = ends().await;
    let options = ObserveOptions::from_start(start.clone()).filter(filter.clone());
    let observer = shared.subject(replica).observe(options).await.unwrap();
    let started = match start {
        Start::Now => Started::Now { before, after: ends().await },
        Start::Snapshot => Started::Snapshot,
        Start::After(cursor) => Started::After { cursor: cursor.to_string(), is_retained: false },
        other => panic!("{other:?} is not known to this test"),
    };
    Watcher::new(observer, Trace::new(started, filter)).with_other_threads()
}

/// Reads until the last matching change has been received. Like a task, it relies on being woken.
pub(crate) async fn read_to_end(watcher: &mut Watcher, model: &Model) {
    let filter = watcher.trace.filter.clone();
    let is_at_end = |cursor: Cursor| match model.place(&cursor.to_string()) {
        Place::After(places) => (0..)
            .zip(places.iter().zip(model.ends()))
            .all(|(partition, (place, end))| model.expected(partition, *place, end, &filter).is_empty()),
        _ => false,
    };
    loop {
        if !watcher.trace.messages.is_empty() && watcher.cursor().is_some_and(is_at_end) {
            watcher.trace.drained = true;
            return;
        }
        if timeout(DEADLINE, watcher.next()).await.is_err() {
            watcher.broken.push(Broken::new(Promise::Live, "the observer was not woken although changes are ready"));
            return;
        }
    }
}

proptest! {
    #![proptest_config(super::config())]

    #[test]
    fn every_stream_keeps_its_promises_under_concurrency(plan in plan()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let broken = runtime.block_on(run_plan(&Memory, &plan));
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}

#[test]
fn snapshots_are_exact_while_other_threads_change_the_sessions() {
    const SNAPSHOTS: usize = 100;
    let shape = Shape {
        buckets: 1,
        partitions: 1,
        storage_events: 1 << 20,
        retain_events: 1 << 20,
        retain_bytes: 1 << 30,
        replicas: 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    runtime.block_on(async {
        let truth = Memory.storage(&shape).await;
        let subject = SessionSubject::start(Arc::clone(&truth), shape.subject_options(), ()).await.unwrap();
        let subject = Arc::new(subject);
        let (stop, stopped) = watch::channel(());
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let (subject, stopped) = (Arc::clone(&subject), stopped.clone());
                let session = SessionKey::new(n, n);
                tokio::spawn(async move {
                    while stopped.has_changed().is_ok() {
                        subject.create(&[session], None).await.unwrap();
                        subject.destroy(&[session], None).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let mut traces = Vec::new();
        for _ in 0..SNAPSHOTS {
            let start = ObserveOptions::snapshot();
            let observer = subject.observe(start).await.unwrap();
            let trace = Trace::new(Started::Snapshot, Filter::default());
            let mut watcher = Watcher::new(observer, trace).with_other_threads();
            while !matches!(timeout(DEADLINE, watcher.next()).await.unwrap(), Some(Content::Synced(_))) {}
            traces.push(watcher.leave().0);
        }
        drop(stop);
        for writer in writers {
            writer.await.unwrap();
        }
        let mut model = Model::new(truth).await;
        model.catch_up().await;
        for trace in traces {
            assert_eq!(trace.judge(&model), [], "{trace:?}");
        }
    });
}
