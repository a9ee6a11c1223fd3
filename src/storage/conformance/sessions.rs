//! The answers of create, has and destroy.

use super::{
    StorageFactory,
    audit::{audit_settled, read_log, session_count_becomes},
    registry::{ROOMY, Registry, count_true, key, keys},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, SessionKey},
    storage::{StorageError, StorageOptions},
};

pub(super) async fn calls_report_whether_they_changed_anything(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let (session, other) = (key(1), key(2));
    ensure!(!registry.has_one(session).await?, Answers, "has: a session exists in a new registry");
    ensure!(!registry.destroy_one(session, None).await?, Answers, "destroy: it destroyed a session that never existed");
    for round in 0..3 {
        ensure!(
            registry.create_one(session, None).await?,
            Answers,
            "create: it did not create the session (round {round})"
        );
        ensure!(registry.has_one(session).await?, Visible, "has: a created session does not exist (round {round})");
        ensure!(
            !registry.create_one(session, None).await?,
            Answers,
            "create: it created an existing session (round {round})"
        );
        ensure!(registry.has_one(session).await?, Answers, "has: a second create removed the session (round {round})");
        ensure!(!registry.has_one(other).await?, Answers, "has: another session exists too (round {round})");
        ensure!(
            registry.destroy_one(session, None).await?,
            Answers,
            "destroy: it did not destroy the session (round {round})"
        );
        ensure!(!registry.has_one(session).await?, Visible, "has: a destroyed session exists (round {round})");
        ensure!(
            !registry.destroy_one(session, None).await?,
            Answers,
            "destroy: it destroyed a session twice (round {round})"
        );
    }
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.created(session), 3, Alternating, "the number of creations in the log");
    ensure_eq!(
        replay.destroyed(session, DestroyReason::Requested),
        3,
        Alternating,
        "the number of destructions in the log"
    );
    Ok(())
}

pub(super) async fn batch_answers_in_order_and_counts_duplicates_once(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let batch: Vec<SessionKey> = [1, 2, 1, 3, 2, 1, 4, 5].map(key).to_vec();
    registry.create_one(key(2), None).await?;
    let created = registry.create(&batch, None).await?;
    let expected = [true, false, false, true, false, false, true, true];
    ensure_eq!(created, expected, Answers, "create of 1 2 1 3 2 1 4 5 where 2 exists");
    let exist = registry.has(&[7, 4, 3, 3, 6, 1].map(key)).await?;
    ensure_eq!(exist, [false, true, true, true, false, true], Answers, "has of 7 4 3 3 6 1 where 1 to 5 exist");
    let destroyed = registry.destroy(&[9, 1, 2, 1, 2, 4, 9].map(key), None).await?;
    let expected = [false, true, true, false, false, true, false];
    ensure_eq!(destroyed, expected, Answers, "destroy of 9 1 2 1 2 4 9 where 1 to 5 exist");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live, [3, 5].map(key).into(), Answers, "the remaining sessions");
    Ok(())
}

pub(super) async fn empty_batch_does_nothing(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    registry.create_one(key(1), None).await?;
    let lease = registry.grant(super::registry::LONG_TTL).await?;
    for lease in [None, Some(lease)] {
        registry.create(&[], lease).await?;
        registry.has(&[]).await?;
        registry.destroy(&[], lease).await?;
    }
    let log = read_log(&registry).await?;
    ensure_eq!(log.iter().map(Vec::len).sum::<usize>(), 1, Alternating, "changes in the log");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn every_id_is_a_distinct_session(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let ids = [0, 1, -1, i64::MIN, i64::MAX, i64::MIN + 1, 1 << 32, -(1 << 32), 0x0102_0304_0506_0708];
    let all: Vec<SessionKey> =
        ids.iter().flat_map(|auth_key| ids.map(|session| SessionKey::new(*auth_key, session))).collect();
    for (n, session) in all.iter().enumerate() {
        ensure!(registry.create_one(*session, None).await?, Answers, "{session:?} was mistaken for another session");
        let exist = registry.has(&all).await?;
        ensure_eq!(count_true(&exist), n + 1, Answers, "the number of sessions after {session:?} was created");
    }
    for (n, session) in all.iter().enumerate() {
        ensure!(registry.destroy_one(*session, None).await?, Answers, "{session:?} was not destroyed");
        let exist = registry.has(&all).await?;
        ensure!(!exist[n], Visible, "{session:?} exists though it was destroyed");
        ensure_eq!(
            count_true(&exist),
            all.len() - n - 1,
            Answers,
            "the number of sessions after {session:?} was destroyed"
        );
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn large_batch_is_processed_completely(factory: &dyn StorageFactory) -> Outcome {
    const MOST: i64 = 65_536;
    let registry = Registry::open(factory).await?;
    let batch = keys(0..MOST);
    let half: Vec<SessionKey> = batch.iter().copied().step_by(2).collect();
    let count = |answers: Vec<bool>| count_true(&answers);
    ensure_eq!(count(registry.create(&half, None).await?), half.len(), Answers, "sessions created");
    ensure_eq!(
        count(registry.create(&batch, None).await?),
        half.len(),
        Answers,
        "sessions created in a batch of which half exist"
    );
    ensure_eq!(count(registry.has(&batch).await?), batch.len(), Visible, "sessions that exist");
    ensure_eq!(count(registry.destroy(&half, None).await?), half.len(), Answers, "sessions destroyed");
    let exist = registry.has(&batch).await?;
    let wrong = exist.iter().zip(0..).find(|(exists, n)| **exists != (n % 2 == 1));
    ensure!(wrong.is_none(), Answers, "has answers out of order for a batch of {MOST}: {wrong:?}");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn session_count_follows_changes(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    session_count_becomes(&registry, 0).await?;
    registry.create(&keys(0..100), None).await?;
    registry.create(&keys(50..120), None).await?;
    session_count_becomes(&registry, 120).await?;
    registry.destroy(&keys(100..200), None).await?;
    session_count_becomes(&registry, 100).await?;
    registry.destroy(&keys(0..100), None).await?;
    session_count_becomes(&registry, 0).await
}

pub(super) async fn full_registry_refuses_only_new_sessions(factory: &dyn StorageFactory) -> Outcome {
    const LIMIT: u64 = 10;
    let registry = Registry::open_with(factory, StorageOptions { max_sessions: LIMIT, ..ROOMY }).await?;
    let held = keys(0..LIMIT as i64);
    ensure_eq!(
        count_true(&registry.create(&held, None).await?),
        held.len(),
        Bounded,
        "sessions created up to the limit"
    );
    let refused = async |what: &str, sessions: &[SessionKey]| {
        match registry.storage().create(sessions, None).await {
            Err(StorageError::TooManySessions { limit }) => {
                ensure_eq!(limit, LIMIT, Answers, "the limit that TooManySessions names");
            }
            other => broken!(Bounded, "{what} returned {other:?} instead of TooManySessions"),
        }
        Ok(())
    };
    refused("one session over the limit", &[key(100)]).await?;
    ensure!(!registry.has_one(key(100)).await?, Answers, "a session exists though its create failed");
    let again = registry.create(&held, None).await?;
    ensure_eq!(count_true(&again), 0, Answers, "existing sessions created at the limit");
    refused("a batch of an existing session and one over the limit", &[key(0), key(100)]).await?;
    registry.destroy_one(key(3), None).await?;
    let room = registry.create(&[key(1), key(100)], None).await?;
    ensure_eq!(room, [false, true], Bounded, "create of an existing session and a new one, after one was destroyed");
    refused("one session over the limit, after the free place was used", &[key(3)]).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len() as u64, LIMIT, Bounded, "sessions at the end");
    Ok(())
}
