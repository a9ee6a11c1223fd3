//! A failover of Redis under load: which calls fail and until when, which acknowledged changes are lost, and whether
//! observers stay exact.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageError},
    subject::Start,
};
use tokio::{sync::watch, task::block_in_place, time::sleep};

use super::replica::{Held, Replica, eventually, keys};

/// No call fails that begins later than this after Redis has failed over. For changes that wait for replicas of Redis, the
/// time begins when as many follow the new master.
const RECOVERY: Duration = Duration::from_secs(2);

/// How long the load runs before a failover, and after its end.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(3500);

/// Far longer than replicas of Redis take to follow a new master.
const PATIENCE: Duration = Duration::from_secs(120);

/// A writer destroys its sessions after this many younger ones were created.
const YOUNGER: usize = 20;

const WRITERS: i64 = 4;

/// The ids of a writer's sessions in one failover.
const IDS: i64 = 100_000;

/// How a master is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is killed, and started again when it has a successor.
    Kill,
    /// It is stopped, and continues when it has a successor.
    Freeze,
    /// An operator orders the failover. The old master runs on.
    Command,
}

impl Loss {
    pub(super) const ALL: [Self; 3] = [Self::Kill, Self::Freeze, Self::Command];
}

/// A failover.
pub(super) struct Switch {
    /// When the master was lost, or the failover was ordered.
    pub(super) began: Instant,
    /// When Redis named the successor.
    pub(super) named: Instant,
}

/// A master with two replicas, or several of them.
pub(super) trait Servers {
    /// Returns the URL of a registry in these servers.
    fn url(&self, parameters: &str) -> String;

    /// Makes a master lose its role. Returns when its successor has taken over.
    fn fail(&mut self, loss: Loss, round: usize) -> impl Future<Output = Switch>;

    /// Returns how many replicas follow each master, or the one that has the fewest.
    fn followers(&self) -> usize;

    /// Whether every master has two replicas again.
    fn is_whole(&self) -> bool;
}

/// What happened to the calls and observers during a failover.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How long Redis took.
    took: Duration,
    /// How long after that as many replicas followed the new master as changes wait for.
    followed_after: Duration,
    /// How long after the failover a read began that failed.
    reads_failed_for: Duration,
    /// How long after that number of replicas followed the new master a change began that failed.
    changes_failed_for: Duration,
    last_errors: Vec<String>,
    acknowledged: usize,
    lost: usize,
    pub(super) resets: usize,
}

/// What a writer did.
#[derive(Default)]
struct Written {
    /// Whether each session exists. `None` if a call failed, which may have taken effect.
    expected: HashMap<SessionKey, Option<bool>>,
    acknowledged: usize,
    /// When the last call that failed began, and its error.
    last_failed_read: Option<(Instant, String)>,
    last_failed_change: Option<(Instant, String)>,
}

impl Written {
    fn note<T>(&mut self, sessions: &[SessionKey], exist: bool, began: Instant, outcome: Result<T, StorageError>) {
        let is_done = outcome.is_ok();
        if let Err(error) = outcome {
            assert!(may_fail(&error), "{error:?}");
            self.last_failed_change = Some((began, format!("{error:?}")));
        } else {
            self.acknowledged += sessions.len();
        }
        self.expected.extend(sessions.iter().map(|session| (*session, is_done.then_some(exist))));
    }
}

fn may_fail(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable(_) | StorageError::Refused(_))
}

/// Creates, destroys and reads sessions until told to stop. Makes no call again.
async fn write(storage: Arc<dyn SessionStorage>, ids: Range<i64>, stopped: watch::Receiver<bool>) -> Written {
    let mut written = Written::default();
    let mut created = VecDeque::new();
    let mut next = ids.start;
    while !*stopped.borrow() {
        let some = keys(next..next + fastrand::i64(1..4));
        next += some.len() as i64;
        assert!(next <= ids.end);
        let began = Instant::now();
        let outcome = storage.create(&some, None).await;
        written.note(&some, true, began, outcome);
        created.push_back(some);
        if created.len() > YOUNGER
            && let Some(old) = created.pop_front()
        {
            let began = Instant::now();
            if let Err(error) = storage.has(&old).await {
                assert!(may_fail(&error), "{error:?}");
                written.last_failed_read = Some((began, format!("{error:?}")));
            }
            let began = Instant::now();
            let outcome = storage.destroy(&old, None).await;
            written.note(&old, false, began, outcome);
        }
        sleep(Duration::from_millis(2)).await;
    }
    written
}

/// Replicas of sessiond over servers that fail over, and an observer of each replica.
pub(super) struct Fleet<S> {
    pub(super) servers: S,
    replicas: Vec<Replica>,
    observers: Vec<Held>,
    rounds: usize,
}

impl<S: Servers> Fleet<S> {
    pub(super) async fn start(servers: S, parameters: &str) -> Self {
        let url = servers.url(parameters);
        let (mut replicas, mut observers) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let replica = Replica::start(&url).await;
            observers.push(replica.watch(Start::Snapshot).await);
            replicas.push(replica);
        }
        Self { servers, replicas, observers, rounds: 0 }
    }

    /// Fails over under load, waits until all servers are back, and compares. Changes wait for `wait` replicas.
    pub(super) async fn fail(&mut self, loss: Loss, wait: usize) -> Outcome {
        let first = self.rounds as i64 * WRITERS * IDS;
        let (stop, stopped) = watch::channel(false);
        let observers: Vec<_> = self.observers.drain(..).map(|held| held.read_until(stopped.clone())).collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let storage = Arc::clone(&self.replicas[writer as usize % self.replicas.len()].storage);
                let ids = first + writer * IDS..first + (writer + 1) * IDS;
                tokio::spawn(write(storage, ids, stopped.clone()))
            })
            .collect();
        sleep(BEFORE).await;
        let Switch { began, named } = self.servers.fail(loss, self.rounds).await;
        self.rounds += 1;
        while block_in_place(|| self.servers.followers()) < wait {
            assert!(named.elapsed() < PATIENCE, "timed out waiting for {wait} replicas of the new master");
            sleep(Duration::from_millis(20)).await;
        }
        let followed = Instant::now();
        sleep(AFTER).await;
        stop.send_replace(true);
        let mut outcome = Outcome {
            took: named - began,
            followed_after: followed - named,
            reads_failed_for: Duration::ZERO,
            changes_failed_for: Duration::ZERO,
            last_errors: Vec::new(),
            acknowledged: 0,
            lost: 0,
            resets: 0,
        };
        let since = |begin: Instant, when: &Option<(Instant, String)>| {
            when.as_ref().map_or(Duration::ZERO, |(when, _)| when.saturating_duration_since(begin))
        };
        let mut expected = HashMap::new();
        for writer in writers {
            let written = writer.await.unwrap();
            outcome.reads_failed_for = outcome.reads_failed_for.max(since(named, &written.last_failed_read));
            outcome.changes_failed_for = outcome.changes_failed_for.max(since(followed, &written.last_failed_change));
            let failed = [written.last_failed_read, written.last_failed_change];
            outcome.last_errors.extend(failed.into_iter().flatten().map(|(_, error)| error));
            outcome.acknowledged += written.acknowledged;
            expected.extend(written.expected);
        }
        let whole = Instant::now();
        block_in_place(|| {
            while !self.servers.is_whole() {
                assert!(whole.elapsed() < PATIENCE, "timed out waiting for the replicas of Redis");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let sessions: Vec<SessionKey> = expected.keys().copied().collect();
        let mut left = Vec::new();
        for some in sessions.chunks(10_000) {
            let exist = eventually(|| async { self.replicas[0].storage.has(some).await.ok() }).await;
            for (session, exists) in some.iter().zip(exist) {
                outcome.lost += usize::from(expected[session].is_some_and(|expected| expected != exists));
                if exists {
                    left.push(*session);
                }
            }
        }
        for observer in observers {
            let mut held = observer.await.unwrap();
            held.converges_to(&left).await;
            outcome.resets += std::mem::take(&mut held.resets).len();
            self.observers.push(held);
        }
        // The next failover begins with an empty registry.
        for some in left.chunks(10_000) {
            eventually(|| async { self.replicas[0].storage.destroy(some, None).await.ok() }).await;
        }
        for held in &mut self.observers {
            held.converges_to(&[]).await;
        }
        outcome
    }
}

impl Outcome {
    pub(super) fn check(&self) {
        assert!(self.acknowledged > 0, "{self:#?}");
        assert!(self.reads_failed_for <= RECOVERY && self.changes_failed_for <= RECOVERY, "{self:#?}");
    }

    pub(super) fn check_nothing_is_lost(&self) {
        assert_eq!(self.lost, 0, "{self:#?}");
    }
}

/// Prints the figures of several failovers as a row of a table.
pub(super) fn print(what: &str, loss: Loss, wait: usize, outcomes: &[Outcome]) {
    let longest = |time: fn(&Outcome) -> Duration| outcomes.iter().map(time).max().unwrap_or_default();
    let sum = |count: fn(&Outcome) -> usize| outcomes.iter().map(count).sum::<usize>();
    #[allow(clippy::print_stderr)] // The figures that the test is run for.
    {
        eprintln!(
            "{what}, {loss:?}, wait_replicas={wait}: {} failovers of {:?} to {:?}; after that, reads failed for at most {:?}, \
             {wait} replicas followed after at most {:?}, and from then on changes failed for at most {:?}; {} of {} acknowledged \
             changes lost in {} failovers; {} resets",
            outcomes.len(),
            outcomes.iter().map(|outcome| outcome.took).min().unwrap_or_default(),
            longest(|outcome| outcome.took),
            longest(|outcome| outcome.reads_failed_for),
            longest(|outcome| outcome.followed_after),
            longest(|outcome| outcome.changes_failed_for),
            sum(|outcome| outcome.lost),
            sum(|outcome| outcome.acknowledged),
            sum(|outcome| usize::from(outcome.lost > 0)),
            sum(|outcome| outcome.resets),
        );
    }
}
