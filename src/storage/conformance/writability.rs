//! Refused changes: the storage reports the refusal in time, and nothing changes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    StorageFactory,
    audit::{all_gone_by, audit_settled},
    expiry::{ATTEMPTS, CLOCK_GRAIN, SOON, in_time},
    registry::{LONG_TTL, PATIENCE, ROOMY, Registry, TTL, count_true, key, keys, unless_gone},
    tail::Tail,
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::DestroyReason,
    storage::{RefusalCause, StorageError, StorageOptions, Writability},
};

/// The time within which a storage must notice that it refuses changes, or that it accepts them again.
const NOTICED: Duration = Duration::from_secs(10);

/// Waits until all handles report this cause or, if it is `None`, that the registry is writable. Makes no other calls.
async fn wait_for_report(registry: &Registry, cause: Option<RefusalCause>) -> Outcome {
    let deadline = Instant::now() + NOTICED + registry.slack;
    for storage in registry.handles() {
        loop {
            let found = storage.writability().refusal().map(|refusal| refusal.cause);
            if found == cause {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                Writable,
                "after {NOTICED:?} writability() names the cause {found:?}, not {cause:?}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Returns whether a change was refused. Fails the case if it failed with another error.
fn is_refused<T>(answer: Result<T, StorageError>, cause: RefusalCause) -> Outcome<bool> {
    match answer {
        Ok(_) => Ok(false),
        Err(StorageError::Refused(refusal)) => {
            ensure_eq!(refusal.cause, cause, Writable, "the cause of a refused change");
            Ok(true)
        }
        Err(StorageError::Unavailable(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Fails the case if a call was refused, though it needs no room. Returns the answer otherwise.
fn unless_refused<T>(call: &str, answer: Result<T, StorageError>) -> Outcome<Result<T, StorageError>> {
    if let Err(StorageError::Refused(refusal)) = &answer {
        broken!(Leased, "{call} was refused though it needs no room: {refusal}");
    }
    Ok(answer)
}

pub(super) async fn writable_storage_reports_it(factory: &dyn StorageFactory) -> Outcome {
    const LIMIT: u64 = 3;
    let registry = Registry::open_with(factory, StorageOptions { max_sessions: LIMIT, ..ROOMY }).await?;
    wait_for_report(&registry, None).await?;
    for n in 0..6 {
        // A full registry refuses new sessions too, but for another reason. It is still writable.
        let answer = registry.storage().create(&[key(n)], None).await;
        ensure_eq!(answer.is_ok(), n < 3, Answers, "whether session {n} of {LIMIT} was created: {answer:?}");
        for storage in registry.handles() {
            ensure_eq!(storage.writability(), Writability::Writable, Writable, "writability() after session {n}");
        }
    }
    Ok(())
}

pub(super) async fn refused_changes_change_nothing(factory: &dyn StorageFactory) -> Outcome {
    let Some((registry, switch)) = Registry::open_refusable(factory).await? else { return Ok(()) };
    let cause = switch.cause();
    let [lease, other] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    let (leased, free, other_free) = (keys(0..10), keys(10..20), keys(30..40));
    registry.create(&leased, Some(lease)).await?;
    registry.create(&[&free[..], &other_free].concat(), None).await?;
    let mut tail = Tail::through_outages(&registry).await?;
    wait_for_report(&registry, None).await?;

    switch.refuse().await;
    wait_for_report(&registry, Some(cause)).await?;
    // A storage may still have some room. The outcome of the first change without room may be unknown, so that change
    // is for a separate session.
    let mut accepted = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for n in 1000.. {
        if is_refused(registry.storage().create(&[key(n)], None).await, cause)? {
            break;
        }
        accepted.push(key(n));
        ensure!(
            Instant::now() < deadline,
            Writable,
            "{} changes were accepted though changes are refused",
            accepted.len()
        );
    }

    let before = registry.extent().await?;
    let news = keys(20..30);
    for (what, answer) in [
        ("create of one", registry.storage().create(&news[..1], None).await),
        ("create of many", registry.storage().create(&news, Some(lease)).await),
        ("a move to another lease", registry.storage().create(&free, Some(other)).await),
    ] {
        ensure!(is_refused(answer, cause)?, Writable, "{what} was accepted");
    }
    ensure!(is_refused(registry.storage().grant_lease(LONG_TTL, "").await, cause)?, Writable, "a lease was granted");
    ensure_eq!(registry.extent().await?, before, Writable, "the log after changes that were refused");
    ensure_eq!(
        count_true(&registry.has(&news).await?),
        0,
        Writable,
        "sessions that exist though their create was refused"
    );
    ensure_eq!(count_true(&registry.has(&leased).await?), 10, Writable, "sessions left of 10 that no call has changed");
    ensure_eq!(count_true(&registry.has(&free).await?), 10, Writable, "sessions left of 10 whose move was refused");
    let is_kept = is_refused(registry.storage().destroy(&other_free, None).await, cause)?;
    ensure!(is_kept || switch.leases_go_on(), Writable, "destroy was accepted");
    let left = count_true(&registry.has(&other_free).await?);
    ensure_eq!(
        left,
        if is_kept { 10 } else { 0 },
        Writable,
        "sessions left of 10 after a destroy (refused: {is_kept})"
    );

    switch.accept().await;
    wait_for_report(&registry, None).await?;
    let last = key(2000);
    let deadline = Instant::now() + PATIENCE;
    while is_refused(registry.storage().create(&[last], None).await, cause)? {
        ensure!(Instant::now() < deadline, Writable, "changes are still refused though writability() says otherwise");
        sleep(Duration::from_millis(20)).await;
    }
    // A follower that waited during the refusal receives the next change.
    loop {
        let Some(event) = tail.next(deadline).await? else {
            broken!(Answers, "a follower that waited while changes were refused did not receive the next change")
        };
        if event.session == last {
            break;
        }
        let is_accepted = event.session.session_id.0 >= 1000 || !is_kept && other_free.contains(&event.session);
        ensure!(is_accepted, Writable, "{event:?} is in the log though that change was refused");
    }
    let replay = audit_settled(&registry).await?;
    for session in accepted.iter().chain(&leased).chain(&free).chain([&last]) {
        ensure!(replay.live.contains(session), Writable, "{session:?} is gone though no destroy was accepted");
    }
    for session in &other_free {
        ensure_eq!(replay.live.contains(session), is_kept, Writable, "whether {session:?} is left");
    }
    for session in &news {
        ensure_eq!(replay.created(*session), 0, Writable, "creations of {session:?}, though its create was refused");
    }
    ensure_eq!(registry.revoke(other).await?, 0, Writable, "sessions under a lease to which all moves were refused");
    ensure_eq!(registry.revoke(lease).await?, 10, Writable, "sessions under the lease that they were created under");
    Ok(())
}

pub(super) async fn leases_are_kept_and_end_without_room(factory: &dyn StorageFactory) -> Outcome {
    in_time!(leases_go_on(factory))
}

async fn leases_go_on(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let Some((registry, switch)) = Registry::open_refusable(factory).await? else { return Ok(Some(())) };
    if !switch.leases_go_on() {
        return Ok(Some(()));
    }
    let _expiring = registry.expire_leases();
    let (dying, revoked, staying) = (keys(0..20), keys(20..40), keys(40..60));
    let stays = registry.grant(LONG_TTL).await?;
    registry.create(&staying, Some(stays)).await?;
    let ends = registry.grant(LONG_TTL).await?;
    registry.create(&revoked, Some(ends)).await?;
    let mut tail = Tail::through_outages(&registry).await?;
    let dies = registry.grant(TTL).await?;
    if unless_gone(registry.storage().create(&dying, Some(dies)).await, dies)?.is_none() {
        return Ok(None);
    }

    switch.refuse().await;
    let asked = Instant::now();
    let kept = registry.storage().keep_lease_alive(dies).await;
    if unless_gone(unless_refused("keep_lease_alive", kept)?, dies)?.is_none() {
        return Ok(None);
    }
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    for (session, seen) in tail.all_destroyed(&dying, DestroyReason::LeaseExpired, deadline).await? {
        let age = seen - asked;
        ensure!(
            age + CLOCK_GRAIN >= TTL,
            Leased,
            "{session:?} expired {age:?} after its lease of {TTL:?} was kept alive"
        );
    }
    wait_for_report(&registry, Some(switch.cause())).await?;
    let kept = unless_refused("keep_lease_alive", registry.storage().keep_lease_alive(stays).await)??;
    ensure_eq!(kept, LONG_TTL, Leased, "the ttl of a lease kept alive without room");
    let ended = unless_refused("revoke_lease", registry.storage().revoke_lease(ends).await)??;
    ensure_eq!(ended, 20, Leased, "sessions destroyed with a lease revoked without room");
    let deadline = Instant::now() + PATIENCE;
    tail.all_destroyed(&revoked, DestroyReason::LeaseRevoked, deadline).await?;
    all_gone_by(&registry, &dying, deadline).await?;
    ensure_eq!(count_true(&registry.has(&staying).await?), 20, Leased, "sessions under a lease that has not ended");

    switch.accept().await;
    wait_for_report(&registry, None).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live, staying.into_iter().collect(), Leased, "the remaining sessions");
    Ok(Some(()))
}
