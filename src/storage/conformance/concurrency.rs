//! Concurrent calls, and calls that are dropped.

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
    registry::{LONG_TTL, ROOMY, Registry, Tasks, count_true, key, keys, poll_at_most, promptly, yield_randomly},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, SessionChange, SessionKey},
    storage::{LogExtent, Position, StorageError, StorageOptions},
};

/// The number of calls for each session that answered that they changed it.
type Answers = HashMap<SessionKey, u64>;

fn count(answers: &mut Answers, sessions: &[SessionKey], changed: &[bool]) {
    for (session, _) in sessions.iter().zip(changed).filter(|(_, changed)| **changed) {
        *answers.entry(*session).or_default() += 1;
    }
}

pub(super) async fn concurrent_callers_agree_on_each_change(factory: &dyn StorageFactory) -> Outcome {
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
                yield_randomly(&mut random).await;
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
        ensure_eq!(created, logged, Concurrent, "answers `created` for {session:?}, compared with the log");
        let logged = replay.destroyed(session, DestroyReason::Requested);
        ensure_eq!(destroyed, logged, Concurrent, "answers `destroyed` for {session:?}, compared with the log");
        let alive = u64::from(replay.live.contains(&session));
        ensure_eq!(
            created - destroyed,
            alive,
            Concurrent,
            "answers `created` minus answers `destroyed` for {session:?}"
        );
    }
    Ok(())
}

/// An observation: the sessions that had changed, and the extent of the log just after that.
struct Observation {
    sessions: Vec<SessionKey>,
    reached: LogExtent,
}

pub(super) async fn change_and_log_entry_are_atomic(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let sessions = keys(0..200);
    // In the first phase all sessions are created, in the second all are destroyed. Each changes once per phase.
    for phase in [true, false] {
        let begin = registry.extent().await?;
        let done = Arc::new(AtomicBool::new(false));
        let mut watchers = Tasks::new();
        for _ in 0..2 {
            let (registry, done, sessions) = (Arc::clone(&registry), Arc::clone(&done), sessions.clone());
            watchers.spawn(async move {
                let mut observations = Vec::new();
                while !done.load(Ordering::Acquire) {
                    let exist = registry.has(&sessions).await?;
                    let reached = registry.extent().await?;
                    let changed = sessions.iter().zip(exist).filter(|(_, exists)| *exists == phase);
                    observations
                        .push(Observation { sessions: changed.map(|(session, _)| *session).collect(), reached });
                    // Waits longer and longer, to keep the observations few: all of them are later checked against the
                    // log.
                    for _ in 0..observations.len() {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(observations)
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
                        broken!(Atomic, "the log has {event:?}, but a later call answers exists = {exists}");
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
                yield_randomly(&mut random).await;
            }
            Outcome::Ok(())
        };
        let changed = change.await;
        done.store(true, Ordering::Release);
        changed?;
        promptly("followers to receive all changes", followers.join()).await??;
        let observations = watchers.join().await?;
        let positions = positions(&registry, phase).await?;
        for Observation { sessions, reached } in observations.into_iter().flatten() {
            for session in sessions {
                let Some(position) = positions.get(&session) else {
                    broken!(Atomic, "{session:?} changed, but the log has no such change");
                };
                let end = reached.partitions[own(&session)].end.position;
                ensure!(
                    *position <= end,
                    Atomic,
                    "{session:?} was seen changed while its log ended at {end:?}, before the change at {position:?}"
                );
            }
        }
    }
    Ok(())
}

/// Returns the position of each session's creation or destruction.
async fn positions(registry: &Registry, created: bool) -> Outcome<HashMap<SessionKey, Position>> {
    let log = read_log(registry).await?;
    replay(registry, &log)?;
    let numbered = log.iter().flat_map(|events| (1..).map(Position).zip(events));
    Ok(numbered
        .filter(|(_, event)| (event.change == SessionChange::Created) == created)
        .map(|(position, event)| (event.session, position))
        .collect())
}

pub(super) async fn change_is_visible_after_its_call_returns(factory: &dyn StorageFactory) -> Outcome {
    const CALLERS: i64 = 6;
    const ROUNDS: i64 = 40;
    let registry = Registry::open(factory).await?;
    let mut callers = Tasks::new();
    for caller in 0..CALLERS {
        let registry = Arc::clone(&registry);
        callers.spawn(async move {
            let mut random = fastrand::Rng::new();
            // Other callers change their own sessions in the same buckets and partitions.
            let own: Vec<_> = keys(caller * 100..caller * 100 + 5);
            for round in 0..ROUNDS {
                let created = registry.create(&own, None).await?;
                ensure_eq!(count_true(&created), own.len(), Visible, "sessions created that no other caller uses");
                yield_randomly(&mut random).await;
                let exist = registry.has(&own).await?;
                ensure_eq!(count_true(&exist), own.len(), Visible, "sessions that exist after create has returned");
                // By now, the log must include these changes.
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
                    ensure_eq!(logged as i64, round + 1, Visible, "creations logged after create has returned");
                }
                let destroyed = registry.destroy(&own, None).await?;
                ensure_eq!(count_true(&destroyed), own.len(), Visible, "sessions destroyed that no other caller uses");
                yield_randomly(&mut random).await;
                let exist = registry.has(&own).await?;
                ensure_eq!(count_true(&exist), 0, Visible, "sessions that exist after destroy has returned");
            }
            Ok(())
        });
    }
    callers.join().await?;
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn dropped_call_leaves_set_and_log_consistent(factory: &dyn StorageFactory) -> Outcome {
    /// More than enough polls for most storages to finish.
    const POLLS: usize = 12;
    for size in [1, 10, 1100] {
        let registry = Registry::open(factory).await?;
        let lease = registry.grant(LONG_TTL).await?;
        for polls in 0..=POLLS {
            let (own, other) = (keys(0..size), keys(10_000..10_000 + size));
            let storage = registry.storage();
            let created =
                poll_at_most(storage.create(&own, (polls % 2 == 0).then_some(lease)), polls).await.transpose()?;
            audit(&registry).await.map_err(|broken| broken.in_step(format!("create dropped after {polls} polls")))?;
            registry.create(&other, None).await?;
            let destroyed = poll_at_most(storage.destroy(&other, None), polls).await.transpose()?;
            audit(&registry).await.map_err(|broken| broken.in_step(format!("destroy dropped after {polls} polls")))?;
            // A retry completes a dropped call, whether or not it had taken effect.
            registry.create(&own, None).await?;
            registry.destroy(&other, None).await?;
            ensure_eq!(
                count_true(&registry.has(&own).await?),
                own.len(),
                Cancellable,
                "sessions after a second create"
            );
            ensure_eq!(count_true(&registry.has(&other).await?), 0, Cancellable, "sessions after a second destroy");
            let replay = audit(&registry).await?;
            ensure_eq!(replay.live.len(), own.len(), Cancellable, "live sessions in the log");
            registry.destroy(&own, None).await?;
            if created.is_some() && destroyed.is_some() {
                break;
            }
        }
    }
    Ok(())
}

pub(super) async fn session_limit_holds_for_concurrent_calls(factory: &dyn StorageFactory) -> Outcome {
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
                    Ok(answers) => created += count_true(&answers) as u64,
                    Err(StorageError::TooManySessions { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                yield_randomly(&mut random).await;
            }
            Ok(created)
        });
    }
    let created: u64 = callers.join().await?.iter().sum();
    ensure_eq!(created, LIMIT, Bounded, "sessions created by concurrent calls");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len() as u64, LIMIT, Bounded, "sessions that exist");
    Ok(())
}
