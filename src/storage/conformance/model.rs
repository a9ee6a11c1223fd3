//! Makes random calls, one after the other, and compares the answers and the log with a model.

use std::collections::HashMap;

use super::{
    StorageFactory,
    audit::{audit_settled, lease_count_becomes, read_on},
    registry::{LONG_TTL, Registry, expect_lingers, key, unless_gone},
    violation::{Outcome, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, LeaseId, SessionChange::Created, SessionEvent, SessionKey},
    storage::{CreateOptions, Creation, LeaseQuery, LogExtent, Lookup, MAX_LINGER, Takeover},
};

pub(super) async fn random_calls_match_the_model(factory: &dyn StorageFactory) -> Outcome {
    for _ in 0..3 {
        let seed = fastrand::u64(..);
        let history = history(factory, fastrand::Rng::with_seed(seed));
        history.await.map_err(|broken| broken.in_step(format!("history {seed:#x}")))?;
    }
    Ok(())
}

#[derive(Default)]
struct Model {
    sessions: HashMap<SessionKey, Option<LeaseId>>,
    live: Vec<LeaseId>,
    /// The live leases that linger.
    lingering: Vec<LeaseId>,
    gone: Vec<LeaseId>,
}

#[derive(Debug)]
enum Call {
    Create(Vec<SessionKey>, CreateOptions),
    Lookup(Vec<SessionKey>),
    Has(Vec<SessionKey>),
    Destroy(Vec<SessionKey>, Option<LeaseId>),
    Grant,
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Linger(LeaseId),
    List,
}

impl Model {
    /// Chooses a random call, with few sessions and leases, so that calls interact.
    fn choose(&self, random: &mut fastrand::Rng) -> Call {
        let sessions: Vec<_> = (0..random.i64(1..6)).map(|_| key(random.i64(0..15))).collect();
        let all: Vec<LeaseId> = self.live.iter().chain(self.gone.iter().rev().take(2)).copied().collect();
        let lease = random.choice(all);
        let sometimes = lease.filter(|_| random.u8(..3) > 0);
        match (random.u8(..22), lease) {
            (0..5, _) => Call::Create(sessions, sometimes.into()),
            (5..8, _) => {
                let takeover = Takeover::OnlyFrom(random.choice(&self.live).copied().filter(|_| random.bool()));
                Call::Create(sessions, CreateOptions { lease: sometimes, takeover })
            }
            (8, _) => Call::Has(sessions),
            (9..11, _) => Call::Lookup(sessions),
            (11..15, _) => Call::Destroy(sessions, sometimes),
            (15, Some(lease)) => Call::KeepAlive(lease),
            (16 | 17, Some(lease)) => Call::Revoke(lease),
            (18, Some(lease)) => Call::Linger(lease),
            (19, _) => Call::List,
            _ if self.live.len() < 4 => Call::Grant,
            _ => Call::Has(sessions),
        }
    }

    /// Creates a session. Returns the change, if there is one.
    fn create(&mut self, session: SessionKey, options: CreateOptions) -> Option<SessionEvent> {
        let CreateOptions { lease, takeover } = options;
        let may_take = |held: Option<LeaseId>| match takeover {
            Takeover::Always => true,
            Takeover::OnlyFrom(from) => held == from || held.is_none_or(|held| self.lingering.contains(&held)),
        };
        match (self.sessions.get(&session).copied(), lease) {
            (None, _) => {
                self.sessions.insert(session, lease);
                Some(SessionEvent::created(session, lease))
            }
            (Some(held), Some(to)) if held != lease && may_take(held) => {
                self.sessions.insert(session, lease);
                Some(SessionEvent::moved(session, to, held))
            }
            _ => None,
        }
    }

    /// Destroys a session. Returns the change, if there is one.
    fn destroy(&mut self, session: SessionKey, lease: Option<LeaseId>) -> Option<SessionEvent> {
        let held = *self.sessions.get(&session)?;
        if lease.is_some() && held != lease {
            return None;
        }
        self.sessions.remove(&session);
        let reason = if lease.is_some() { DestroyReason::Released } else { DestroyReason::Requested };
        Some(SessionEvent::destroyed(session, reason, held))
    }

    /// Ends a lease. Returns the sessions that end with it, or `None` if the lease is gone.
    fn revoke(&mut self, lease: LeaseId) -> Option<Vec<SessionKey>> {
        let index = self.live.iter().position(|live| *live == lease)?;
        self.gone.push(self.live.swap_remove(index));
        self.lingering.retain(|lingering| *lingering != lease);
        let under = self.sessions.extract_if(|_, held| *held == Some(lease));
        Some(under.map(|(session, _)| session).collect())
    }
}

async fn history(factory: &dyn StorageFactory, mut random: fastrand::Rng) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut model = Model::default();
    let mut log = vec![Vec::new(); registry.layout().partitions as usize];
    for step in 0..250 {
        let call = model.choose(&mut random);
        let expected = step_both(&registry, &mut model, &call);
        let expected = expected.await.map_err(|broken| broken.in_step(format!("step {step}, {call:?}")))?;
        let compared = compare_log(&registry, &mut log, &call, expected);
        compared.await.map_err(|broken| broken.in_step(format!("step {step}, {call:?}")))?;
    }
    lease_count_becomes(&registry, model.live.len() as u64).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.leases, model.sessions, Placed, "the sessions and their leases at the end");
    Ok(())
}

/// Makes a call to the storage and the model, and compares the answers. Returns the changes that must be logged.
async fn step_both(registry: &Registry, model: &mut Model, call: &Call) -> Outcome<Vec<SessionEvent>> {
    Ok(match call {
        Call::Create(sessions, CreateOptions { lease: Some(lease), takeover }) if !model.live.contains(lease) => {
            let options = CreateOptions { lease: Some(*lease), takeover: *takeover };
            let created = unless_gone(registry.storage().create_with(sessions, options).await, *lease)?;
            ensure!(created.is_none(), Leased, "sessions were created under a lease that is gone");
            Vec::new()
        }
        Call::Create(sessions, CreateOptions { lease: Some(lease), takeover }) if model.lingering.contains(lease) => {
            let options = CreateOptions { lease: Some(*lease), takeover: *takeover };
            expect_lingers(registry.storage().create_with(sessions, options).await, *lease)?;
            Vec::new()
        }
        Call::Create(sessions, options) => {
            let (mut changes, mut expected) = (Vec::new(), Vec::new());
            for session in sessions {
                let change = model.create(*session, *options);
                let created = change.is_some_and(|event| event.change == Created);
                expected.push(Creation { created, lease: model.sessions.get(session).copied().flatten() });
                changes.extend(change);
            }
            ensure_eq!(registry.create_with(sessions, *options).await?.sessions, expected, Answers, "create");
            changes
        }
        Call::Lookup(sessions) => {
            let held = |session: &SessionKey| model.sessions.get(session);
            let found =
                |held: Option<&Option<LeaseId>>| Lookup { exists: held.is_some(), lease: held.copied().flatten() };
            let expected: Vec<_> = sessions.iter().map(|session| found(held(session))).collect();
            ensure_eq!(registry.lookup(sessions).await?, expected, Placed, "lookup");
            Vec::new()
        }
        Call::Has(sessions) => {
            let expected: Vec<bool> = sessions.iter().map(|session| model.sessions.contains_key(session)).collect();
            ensure_eq!(registry.has(sessions).await?, expected, Answers, "has");
            Vec::new()
        }
        Call::Destroy(sessions, lease) => {
            let changes: Vec<_> = sessions.iter().map(|session| model.destroy(*session, *lease)).collect();
            let expected: Vec<bool> = changes.iter().map(Option::is_some).collect();
            ensure_eq!(registry.destroy(sessions, *lease).await?, expected, Answers, "destroy");
            changes.into_iter().flatten().collect()
        }
        Call::Grant => {
            let lease = registry.grant(LONG_TTL).await?;
            let used = model.live.contains(&lease) || model.gone.contains(&lease);
            ensure!(!used, Leased, "lease {lease} was granted twice");
            model.live.push(lease);
            Vec::new()
        }
        Call::KeepAlive(lease) if model.lingering.contains(lease) => {
            expect_lingers(registry.storage().keep_lease_alive(*lease).await, *lease)?;
            Vec::new()
        }
        Call::Linger(lease) => {
            let answer = unless_gone(registry.storage().revoke_lease_with(*lease, MAX_LINGER).await, *lease)?;
            ensure_eq!(answer, model.live.contains(lease).then_some(0), Leased, "revoke_lease_with a linger");
            if answer.is_some() && !model.lingering.contains(lease) {
                model.lingering.push(*lease);
            }
            Vec::new()
        }
        Call::List => {
            let query = LeaseQuery { after: None, limit: 3, owner: None, lease_ids: Vec::new() };
            let list = registry.list(query).await?;
            let listed: Vec<_> =
                list.iter().map(|status| (status.lease, status.session_count, status.lingers)).collect();
            let under = |lease| model.sessions.values().filter(|held| **held == Some(lease)).count() as u64;
            let mut expected: Vec<_> =
                model.live.iter().map(|&lease| (lease, under(lease), model.lingering.contains(&lease))).collect();
            expected.sort_unstable();
            ensure_eq!(listed, expected, Answers, "list_leases");
            Vec::new()
        }
        Call::KeepAlive(lease) => {
            let ttl = unless_gone(registry.storage().keep_lease_alive(*lease).await, *lease)?;
            let expected = model.live.contains(lease).then_some(LONG_TTL);
            ensure_eq!(ttl, expected, Answers, "keep_lease_alive");
            Vec::new()
        }
        Call::Revoke(lease) => {
            let under = model.revoke(*lease);
            let count = unless_gone(registry.storage().revoke_lease(*lease).await, *lease)?;
            ensure_eq!(count, under.as_ref().map(|under| under.len() as u64), Leased, "revoke_lease");
            let gone = |session| SessionEvent::destroyed(session, DestroyReason::LeaseRevoked, Some(*lease));
            under.unwrap_or_default().into_iter().map(gone).collect()
        }
    })
}

/// Reads the new changes in the log, and compares them. The sessions of a revoked lease may be destroyed in any order.
async fn compare_log(
    registry: &Registry,
    log: &mut [Vec<SessionEvent>],
    call: &Call,
    expected: Vec<SessionEvent>,
) -> Outcome {
    let LogExtent { partitions, .. } = registry.extent().await?;
    for (partition, held) in partitions.iter().enumerate() {
        let events = &mut log[partition];
        let known = events.len();
        read_on(registry, partition, events, held.end.position).await?;
        let mut new = events[known..].to_vec();
        let mut expected: Vec<_> =
            expected.iter().filter(|event| registry.partition_of(&event.session) == partition).copied().collect();
        if matches!(call, Call::Revoke(_)) {
            new.sort_unstable_by_key(|event| event.session);
            expected.sort_unstable_by_key(|event| event.session);
        }
        ensure_eq!(new, expected, Ordered, "the new changes of partition {partition}");
    }
    Ok(())
}
