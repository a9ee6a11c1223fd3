//! Faults in what creates, destroys and finds sessions.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, CreateOptions, Creation, Lookup, MAX_LINGER, Place, Places, Position, SessionStorage, StorageError,
        Takeover,
    },
};
use tokio::{task::yield_now, time::sleep};

use super::{Broken, fault::Fault::*};
use crate::twisted::Twist;

/// Breaks the calls about sessions.
#[derive(Debug)]
pub(super) struct Sessions(pub(super) Arc<Broken>);

impl Sessions {
    /// Returns a lease that no caller knows and that does not end during a case.
    async fn other_lease(&self, truth: &dyn SessionStorage) -> Result<LeaseId, StorageError> {
        let held = self.0.state().other_lease;
        if let Some(lease) = held {
            return Ok(lease);
        }
        let lease = truth.grant_lease(Duration::from_secs(3600), "").await?;
        self.0.state().other_lease = Some(lease);
        Ok(lease)
    }

    /// Lets a lease linger at last, after a few creates under it that should have been refused.
    async fn linger_when_due(&self, truth: &dyn SessionStorage, lease: Option<LeaseId>) -> Result<(), StorageError> {
        let late = {
            let mut state = self.0.state();
            let late = state.lingers_late.take_if(|(late, left)| {
                *left -= u32::from(Some(*late) == lease);
                *left == 0
            });
            late.map(|(lease, _)| lease)
        };
        if let Some(lease) = late {
            truth.revoke_lease_with(lease, MAX_LINGER).await?;
        }
        Ok(())
    }

    /// Creates sessions without a takeover condition.
    async fn create_always(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Vec<bool>, StorageError> {
        if self.0.fault == AppliesWhatItRefuses && self.0.refuses() {
            truth.create(sessions, lease).await?;
        }
        self.0.admit()?;
        let all = |lease: Option<LeaseId>| sessions.iter().map(move |session| (*session, lease));
        match (self.0.fault, lease) {
            (CreatesTwice, _) => truth.create(sessions, lease).await.map(|answers| vec![true; answers.len()]),
            (AnswersOutOfOrder, _) => {
                truth.create(sessions, lease).await.map(|answers| answers.into_iter().rev().collect())
            }
            (ForgetsAuthKeys, _) => truth.create(&without_auth_keys(sessions), lease).await,
            (RefusesWhatExistsWhenFull, _) if truth.session_count().await? >= self.0.max_sessions => {
                Err(StorageError::TooManySessions { limit: self.0.max_sessions })
            }
            (LogsBeforeItChanges, _) => {
                self.0.state().hidden.extend(sessions);
                let created = truth.create(sessions, lease).await;
                yield_now().await;
                yield_now().await;
                self.0.state().hidden.clear();
                created
            }
            (ShowsChangesLate, _) => {
                self.0.state().hidden.extend(sessions);
                truth.create(sessions, lease).await
            }
            (LeavesOutWhatWasDropped, _) => {
                self.0.state().hidden.extend(sessions);
                let created = truth.create(sessions, lease).await?;
                yield_now().await;
                self.0.state().hidden.clear();
                Ok(created)
            }
            (KeepsRevokedLeases, Some(_)) => match truth.create(sessions, lease).await {
                Err(StorageError::UnknownLease(_)) => truth.create(sessions, None).await,
                answer => answer,
            },
            (MovesNothing, Some(_)) => {
                let mut created = Vec::new();
                for session in sessions {
                    let exists = truth.has(&[*session]).await?[0];
                    created.extend(truth.create(&[*session], lease.filter(|_| !exists)).await?);
                }
                Ok(created)
            }
            (DropsTheLeaseWhenCreatedWithout, None) => {
                let created = truth.create(sessions, None).await?;
                truth.create(sessions, Some(self.other_lease(truth).await?)).await?;
                Ok(created)
            }
            (LeavesAGhost, Some(_)) => {
                self.check_lease(truth, lease).await?;
                sleep(Duration::from_millis(2)).await;
                let created = truth.create(sessions, None).await?;
                sleep(Duration::from_millis(2)).await;
                truth.create(sessions, lease).await?;
                Ok(created)
            }
            (ReordersABatch, _) => {
                let mut created = self.create_each(truth, all(lease).rev()).await?;
                created.reverse();
                Ok(created)
            }
            (LosesTheEndOfALongBatch, _) => {
                let done = sessions.len().min(10_000);
                let mut created = truth.create(&sessions[..done], lease).await?;
                created.resize(sessions.len(), true);
                Ok(created)
            }
            (LogsAnEmptyBatch, _) if sessions.is_empty() => {
                truth.create(&[SessionKey::new(9, 9)], lease).await?;
                Ok(Vec::new())
            }
            (LeasesTheFirstOnly, Some(_)) => self.create_each(truth, all(lease).take(1).chain(all(None).skip(1))).await,
            _ => truth.create(sessions, lease).await,
        }
    }

    async fn check_lease(&self, truth: &dyn SessionStorage, lease: Option<LeaseId>) -> Result<(), StorageError> {
        match lease {
            Some(lease) if truth.lease_owner(lease).await?.is_none() => Err(StorageError::UnknownLease(lease)),
            _ => Ok(()),
        }
    }

    /// Creates sessions one by one.
    async fn create_each(
        &self,
        truth: &dyn SessionStorage,
        sessions: impl IntoIterator<Item = (SessionKey, Option<LeaseId>)> + Send,
    ) -> Result<Vec<bool>, StorageError> {
        let sessions: Vec<_> = sessions.into_iter().collect();
        let mut created = Vec::new();
        for (session, lease) in sessions {
            created.extend(truth.create(&[session], lease).await?);
        }
        Ok(created)
    }
}

#[async_trait]
impl Twist for Sessions {
    fn bucket_of(&self, truth: &dyn SessionStorage, session: &SessionKey) -> u32 {
        let mut bucket = truth.bucket_of(session);
        if self.0.fault == WandersBetweenBuckets {
            let mut state = self.0.state();
            state.calls += 1;
            bucket = (bucket + state.calls) % truth.layout().buckets;
        }
        bucket
    }

    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let mut options = options;
        match self.0.fault {
            TakesFromAnyLease => options.takeover = Takeover::Always,
            TakesNothing if options.takeover != Takeover::Always => {
                options.takeover = Takeover::OnlyFrom(options.lease)
            }
            _ => {}
        }
        if self.0.fault == RefusesEmptyLists && sessions.is_empty() {
            self.check_lease(truth, options.lease).await?;
        }
        self.linger_when_due(truth, options.lease).await?;
        if options.takeover != Takeover::Always {
            self.0.admit()?;
            let found = truth.lookup(sessions).await?;
            let lingers =
                found.iter().any(|found| found.lease.is_some_and(|lease| self.0.state().lingering.contains(&lease)));
            let stay = match self.0.fault {
                ProtectsWhatLingers if lingers => Some(found.iter().map(|found| found.lease).collect()),
                AnswersMovesAndMakesNone if lingers => Some(vec![options.lease; sessions.len()]),
                _ => None,
            };
            if let Some(leases) = stay {
                let leases: Vec<Option<LeaseId>> = leases;
                let sessions = leases.into_iter().map(|lease| Creation::new(false, lease)).collect();
                return Ok(Answers::new(sessions, Places::default()));
            }
            return truth.create_with(sessions, options).await;
        }
        let created = self.create_always(truth, sessions, options.lease).await?;
        if let Some(lease) = options.lease {
            self.0.state().leases.extend(sessions.iter().map(|session| (*session, lease)));
        }
        let mut places = Places::default();
        let end = truth.log().await?.partitions;
        for session in sessions {
            let partition = truth.partition_of(truth.bucket_of(session));
            let position = end[partition as usize].end.position;
            let position = if self.0.fault == NamesTheStart { Position(0) } else { position };
            places.add(Place { partition, position });
        }
        let found = truth.lookup(sessions).await?;
        let lease = |found: Lookup| found.lease.filter(|_| self.0.fault != TellsNoLease);
        let answer = |(created, found)| Creation::new(created, lease(found));
        Ok(Answers::new(created.into_iter().zip(found).map(answer).collect(), places))
    }

    async fn lookup(&self, truth: &dyn SessionStorage, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let mut found = truth.lookup(sessions).await?;
        if self.0.fault == LooksUpNoLease {
            found.iter_mut().for_each(|found| found.lease = None);
        }
        if self.0.fault == LooksUpEndedLeases {
            let state = self.0.state();
            for (found, session) in found.iter_mut().zip(sessions).filter(|(found, _)| found.exists) {
                found.lease = found.lease.or_else(|| state.leases.get(session).copied());
            }
        }
        if self.0.fault == LooksUpDuplicatesOnce {
            let mut seen = HashSet::new();
            found.iter_mut().zip(sessions).filter(|(_, session)| !seen.insert(**session)).for_each(|(found, _)| {
                *found = Lookup::default();
            });
        }
        Ok(found)
    }

    async fn has(&self, truth: &dyn SessionStorage, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        if self.0.fault == ForgetsAuthKeys {
            return truth.has(&without_auth_keys(sessions)).await;
        }
        let mut exist = truth.has(sessions).await?;
        let mut state = self.0.state();
        if matches!(self.0.fault, LogsBeforeItChanges | ShowsChangesLate) {
            for (exists, session) in exist.iter_mut().zip(sessions) {
                *exists &= !state.hidden.contains(session);
            }
        }
        if self.0.fault == ShowsChangesLate {
            state.hidden.clear();
        }
        Ok(exist)
    }

    async fn destroy_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        self.0.admit()?;
        match self.0.fault {
            DestroysTwice => {
                let mut answers = truth.destroy_with(sessions, lease).await?;
                answers.sessions.fill(true);
                Ok(answers)
            }
            ForgetsAuthKeys => truth.destroy_with(&without_auth_keys(sessions), lease).await,
            DestroysUnderAnyLease => truth.destroy_with(sessions, None).await,
            _ => truth.destroy_with(sessions, lease).await,
        }
    }

    async fn session_count(&self, truth: &dyn SessionStorage) -> Result<u64, StorageError> {
        let count = truth.session_count().await?;
        Ok(if self.0.fault == CountsOneMore { count + 1 } else { count })
    }
}

fn without_auth_keys(sessions: &[SessionKey]) -> Vec<SessionKey> {
    sessions.iter().map(|session| SessionKey::new(0, session.session_id.0)).collect()
}
