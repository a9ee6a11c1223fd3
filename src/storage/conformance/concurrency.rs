//! Calls at once, and calls that are dropped.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    StorageFactory,
    audit::{audit, audit_settled, read_log, read_on, replay},
    registry::{LONG_TTL, ROOMY, Registry, Tasks, breathe, cut_short, key, keys, soon, yes},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, SessionChange, SessionKey},
    storage::{LogExtent, Position, StorageError, StorageOptions},
};

/// For each session, how many calls answered that they changed it.
type Answers = HashMap<SessionKey, u64>;

fn count(answers: &mut Answers, sessions: &[SessionKey], changed: &[bool]) {
    for (session, _) in sessions.iter().zip(changed).filter(|(_, changed)| **changed) {
        *answers.entry(*session).or_default() += 1;
    }
}

pub(super) async fn callers_of_the_same_sessions_agree(factory: &dyn StorageFactory) -> Outcome {
    const CALLERS: usize = 8;
    const CALLS: usize = 150;
    const SESSIONS: i64 = 12;
    let registry = Registry::open(factory).await?;
    let mut callers = Tasks::new();
    for _ in 0..CALLERS {
        let registry = Arc::clone(&registry);
        callers.spawn(async move {
            let mut random = fastrand::Rng::new();
            let (mut created, mut destroyed) = (Answers::new(), Answers::new());
            for _ in 0..CALLS {
                let batch: Vec<_> = (0..random.i64(1..5)).map(|_| key(random.i64(0..SESSIONS))).collect();
                if random.bool() {
                    count(&mut created, &batch, &registry.create(&batch, None).await?);
                } else {
                    count(&mut destroyed, &batch, &registry.destroy(&batch, None).await?);
                }
                breathe(&mut random).await;
            }
            Ok((created, destroyed))
        });
    }
    let answers = callers.join().await?;
    let replay = audit_settled(&registry).await?;
    for session in keys(0..SESSIONS) {
        let sum = |of: fn(&(Answers, Answers)) -> &Answers| -> u64 {
            answers.iter().filter_map(|answer| of(answer).get(&session)).sum()
        };
        let (created, destroyed) = (sum(|(created, _)| created), sum(|(_, destroyed)| destroyed));
        let logged = replay.created(session);
        ensure_eq!(created, logged, Concurrent, "answers `created` for {session:?}, against its log");
        let logged = replay.destroyed(session, DestroyReason::Requested);
        ensure_eq!(destroyed, logged, Concurrent, "answers `destroyed` for {session:?}, against its log");
        let alive = u64::from(replay.live.contains(&session));
        ensure_eq!(created - destroyed, alive, Concurrent, "answers `created` less those `destroyed` for {session:?}");
    }
    Ok(())
}

/// What was seen at a moment: the sessions that existed (or did not), and then how far the log reached.
struct Sight {
    sessions: Vec<SessionKey>,
    reached: LogExtent,
}

pub(super) async fn a_change_and_its_log_entry_are_one_step(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let sessions = keys(0..200);
    // First all are created, then all are destroyed: in each phase a session that has changed stays so.
    for phase in [true, false] {
        let begin = registry.extent().await?;
        let done = Arc::new(AtomicBool::new(false));
        let mut watchers = Tasks::new();
        for _ in 0..2 {
            let (registry, done, sessions) = (Arc::clone(&registry), Arc::clone(&done), sessions.clone());
            watchers.spawn(async move {
                let mut sights = Vec::new();
                while !done.load(Ordering::Acquire) {
                    let exist = registry.has(&sessions).await?;
                    let reached = registry.extent().await?;
                    let changed = sessions.iter().zip(exist).filter(|(_, exists)| *exists == phase);
                    sights.push(Sight { sessions: changed.map(|(session, _)| *session).collect(), reached });
                    // What is seen in each is searched for in the log, so these are kept few.
                    for _ in 0..sights.len() {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(sights)
            });
        }
        let mut followers = Tasks::new();
        let own = |session: &SessionKey| registry.partition_of(session);
        for (partition, held) in begin.partitions.iter().enumerate() {
            let registry = Arc::clone(&registry);
            let expected = sessions.iter().filter(|session| own(session) == partition).count();
            let mut after = held.end;
            followers.spawn(async move {
                let mut left = expected;
                while left > 0 {
                    let changes = registry.changes_after(partition, after, 10).await?;
                    after = after.past(&changes);
                    let events = changes.events;
                    left = left.saturating_sub(events.len());
                    let changed: Vec<_> = events.iter().map(|event| event.session).collect();
                    let exist = registry.has(&changed).await?;
                    let wrong = events.iter().zip(exist).find(|(_, exists)| *exists != phase);
                    if let Some((event, exists)) = wrong {
                        broken!(
                            Atomic,
                            "the log says {event:?}, but whether it exists is answered {exists} after that"
                        );
                    }
                }
                Ok(())
            });
        }
        let mut random = fastrand::Rng::new();
        let change = async {
            for some in sessions.chunks(3) {
                if phase {
                    registry.create(some, None).await?;
                } else {
                    registry.destroy(some, None).await?;
                }
                breathe(&mut random).await;
            }
            Outcome::Ok(())
        };
        let changed = change.await;
        done.store(true, Ordering::Release);
        changed?;
        soon("every change in the log, by those who follow it", followers.join()).await??;
        let sights = watchers.join().await?;
        let positions = positions(&registry, phase).await?;
        for Sight { sessions, reached } in sights.into_iter().flatten() {
            for session in sessions {
                let Some(position) = positions.get(&session) else {
                    broken!(Atomic, "{session:?} changed, and the log does not have it");
                };
                let end = reached.partitions[own(&session)].end.position;
                ensure!(
                    *position <= end,
                    Atomic,
                    "{session:?} was seen changed when its log, which has that at {position:?}, reached {end:?} only"
                );
            }
        }
    }
    Ok(())
}

/// Where the log has each session's creation, or its destruction.
async fn positions(registry: &Registry, created: bool) -> Outcome<HashMap<SessionKey, Position>> {
    let log = read_log(registry).await?;
    replay(registry, &log)?;
    let numbered = log.iter().flat_map(|events| (1..).map(Position).zip(events));
    Ok(numbered
        .filter(|(_, event)| (event.change == SessionChange::Created) == created)
        .map(|(position, event)| (event.session, position))
        .collect())
}

pub(super) async fn a_change_is_seen_once_its_call_returns(factory: &dyn StorageFactory) -> Outcome {
    const CALLERS: i64 = 6;
    const ROUNDS: i64 = 40;
    let registry = Registry::open(factory).await?;
    let mut callers = Tasks::new();
    for caller in 0..CALLERS {
        let registry = Arc::clone(&registry);
        callers.spawn(async move {
            let mut random = fastrand::Rng::new();
            // Others change sessions of theirs beside these, in the same buckets and partitions.
            let own: Vec<_> = keys(caller * 100..caller * 100 + 5);
            for round in 0..ROUNDS {
                let created = registry.create(&own, None).await?;
                ensure_eq!(yes(&created), own.len(), Visible, "sessions created, which no other caller touches");
                breathe(&mut random).await;
                let exist = registry.has(&own).await?;
                ensure_eq!(yes(&exist), own.len(), Visible, "sessions that exist once create has returned");
                // By now the log must reach as far as these changes.
                let extent = registry.extent().await?;
                let session = own[0];
                let partition = registry.partition_of(&session);
                let end = extent.partitions[partition].end.position;
                if round % 10 == 0 {
                    let mut events = Vec::new();
                    read_on(&registry, partition, &mut events, end).await?;
                    events.truncate(end.0 as usize);
                    let logged = events
                        .iter()
                        .filter(|event| event.session == session && event.change == SessionChange::Created)
                        .count();
                    ensure_eq!(logged as i64, round + 1, Visible, "creations logged once create has returned");
                }
                let destroyed = registry.destroy(&own, None).await?;
                ensure_eq!(yes(&destroyed), own.len(), Visible, "sessions destroyed, which no other caller touches");
                breathe(&mut random).await;
                let exist = registry.has(&own).await?;
                ensure_eq!(yes(&exist), 0, Visible, "sessions that exist once destroy has returned");
            }
            Ok(())
        });
    }
    callers.join().await?;
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn a_dropped_call_leaves_set_and_log_agreed(factory: &dyn StorageFactory) -> Outcome {
    /// Some storage may be done after few polls, another is asked far more often than it needs.
    const POLLS: usize = 12;
    for size in [1, 10, 1100] {
        let registry = Registry::open(factory).await?;
        let lease = registry.grant(LONG_TTL).await?;
        for polls in 0..=POLLS {
            let (own, other) = (keys(0..size), keys(10_000..10_000 + size));
            let storage = registry.storage();
            let created =
                cut_short(storage.create(&own, (polls % 2 == 0).then_some(lease)), polls).await.transpose()?;
            audit(&registry).await.map_err(|broken| broken.in_step(format!("create dropped at poll {polls}")))?;
            registry.create(&other, None).await?;
            let destroyed = cut_short(storage.destroy(&other, None), polls).await.transpose()?;
            audit(&registry).await.map_err(|broken| broken.in_step(format!("destroy dropped at poll {polls}")))?;
            // What was dropped can be done again, and then it is done whatever had become of it.
            registry.create(&own, None).await?;
            registry.destroy(&other, None).await?;
            ensure_eq!(yes(&registry.has(&own).await?), own.len(), Cancellable, "sessions after a second create");
            ensure_eq!(yes(&registry.has(&other).await?), 0, Cancellable, "sessions after a second destroy");
            let replay = audit(&registry).await?;
            ensure_eq!(replay.live.len(), own.len(), Cancellable, "sessions left by the log");
            registry.destroy(&own, None).await?;
            if created.is_some() && destroyed.is_some() {
                break;
            }
        }
    }
    Ok(())
}

pub(super) async fn a_limit_holds_for_calls_at_once(factory: &dyn StorageFactory) -> Outcome {
    const CALLERS: i64 = 8;
    const EACH: i64 = 30;
    const LIMIT: u64 = 100;
    let registry = Registry::open_with(factory, StorageOptions { max_sessions: LIMIT, ..ROOMY }).await?;
    let mut callers = Tasks::new();
    for caller in 0..CALLERS {
        let registry = Arc::clone(&registry);
        callers.spawn(async move {
            let mut random = fastrand::Rng::new();
            let mut created = 0;
            for session in keys(caller * EACH..(caller + 1) * EACH) {
                match registry.storage().create(&[session], None).await {
                    Ok(answers) => created += yes(&answers) as u64,
                    Err(StorageError::TooManySessions { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                breathe(&mut random).await;
            }
            Ok(created)
        });
    }
    let created: u64 = callers.join().await?.iter().sum();
    ensure_eq!(created, LIMIT, Bounded, "sessions created by calls at once, where none was destroyed");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len() as u64, LIMIT, Bounded, "sessions that exist");
    Ok(())
}
