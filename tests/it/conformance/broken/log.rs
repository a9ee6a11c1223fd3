//! Faults in the log of changes.

use std::{future::pending, mem::forget, mem::replace, sync::Arc};

use async_trait::async_trait;
use sessiond::{
    session::{DestroyReason, SessionChange},
    storage::{Changes, LogError, LogExtent, LogPoint, Mark, Position, RegistryId, SessionStorage, StorageError},
};
use tokio::task::yield_now;

use super::{Broken, dropped::WhenDropped, fault::Fault::*};
use crate::twisted::Twist;

/// Breaks the calls about the log.
#[derive(Debug)]
pub(super) struct Log(pub(super) Arc<Broken>);

#[async_trait]
impl Twist for Log {
    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        let mut extent = truth.log().await?;
        match self.0.fault {
            SharesItsIdentity => extent.registry_id = RegistryId(1),
            MismarksItsExtent => extent.partitions.iter_mut().for_each(|held| held.end.mark.0 += 1),
            MarksByTheEnd => {
                for held in &mut extent.partitions {
                    held.start.mark.0 ^= held.end.position.0;
                    held.end.mark.0 ^= held.end.position.0;
                }
            }
            ShowsTheLogLate => {
                let before = self.0.state().extent.replace(extent.clone());
                extent = before.unwrap_or(extent);
            }
            _ => {}
        }
        Ok(extent)
    }

    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let registry_id = match self.0.fault {
            FollowsAnyRegistry => truth.log().await?.registry_id,
            _ => registry_id,
        };
        let after = match self.0.fault {
            FollowsAnyHistory => LogPoint { mark: truth.log().await?.partitions[0].end.mark, ..after },
            _ => after,
        };
        let follow = |limit: usize| truth.changes_after(registry_id, partition, after, limit);
        let at_end = async || Ok::<_, StorageError>(truth.log().await?.partitions[partition as usize].end == after);
        match self.0.fault {
            LosesAChange if after.position.0 < 3 => {
                let mut changes = follow(limit).await?;
                let lost = 2 - after.position.0 as usize;
                if changes.events.len() > lost {
                    changes.events.remove(lost);
                }
                if changes.events.is_empty() {
                    let after = LogPoint { position: Position(3), ..after };
                    truth.changes_after(registry_id, partition, after, limit).await
                } else {
                    Ok(changes)
                }
            }
            RepeatsAChange if after.position == Position(0) => {
                let mut changes = follow(limit).await?;
                changes.events.insert(0, changes.events[0]);
                changes.events.truncate(limit);
                Ok(changes)
            }
            IgnoresTheLimit => follow(usize::MAX).await,
            IsBusy => {
                while at_end().await? {
                    yield_now().await;
                }
                follow(limit).await
            }
            WakesNobody if at_end().await? => pending().await,
            ServesOneFollower => {
                if replace(&mut self.0.state().following, true) {
                    return pending().await;
                }
                let _done = WhenDropped(|| self.0.state().following = false);
                follow(limit).await
            }
            ForgetsWhatADroppedFollowerMissed => {
                let dropped = WhenDropped(|| self.0.state().missed += 1);
                let mut changes = follow(limit).await?;
                forget(dropped);
                let mut state = self.0.state();
                let lost = state.missed.min(changes.events.len() - 1);
                state.missed -= lost;
                changes.events.drain(..lost);
                Ok(changes)
            }
            CallsTrimmedRestarted => match follow(limit).await {
                Err(LogError::Trimmed) => Err(LogError::Restarted),
                answer => answer,
            },
            MismarksChanges => {
                let mut changes = follow(limit).await?;
                changes.mark.0 += 1;
                Ok(changes)
            }
            WaitsInAnotherHistory if truth.log().await?.partitions[0].end.mark != after.mark => pending().await,
            WaitsAhead => match follow(limit).await {
                Err(LogError::Restarted) => pending().await,
                answer => answer,
            },
            ForgetsWhereASessionMovedFrom => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    if let SessionChange::Moved { previous } = &mut event.change {
                        *previous = None;
                    }
                }
                Ok(changes)
            }
            ForgetsTheLeaseOfADestroyedSession => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    event.lease = event.lease.filter(|_| !matches!(event.change, SessionChange::Destroyed(_)));
                }
                Ok(changes)
            }
            ConfusesReasons => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    event.change = match event.change {
                        SessionChange::Destroyed(DestroyReason::LeaseRevoked) => {
                            SessionChange::Destroyed(DestroyReason::Requested)
                        }
                        SessionChange::Destroyed(DestroyReason::LeaseExpired) => {
                            SessionChange::Destroyed(DestroyReason::LeaseRevoked)
                        }
                        change => change,
                    };
                }
                Ok(changes)
            }
            _ => follow(limit).await,
        }
    }

    async fn marks(
        &self,
        truth: &dyn SessionStorage,
        positions: &[Position],
    ) -> Result<Vec<Option<Mark>>, StorageError> {
        let mut marks = truth.marks(positions).await?;
        let extent = truth.log().await?;
        for ((mark, position), held) in marks.iter_mut().zip(positions).zip(&extent.partitions) {
            match self.0.fault {
                ForgetsMarks if *position < held.end.position => *mark = None,
                ForgetsTheMarkAtTheStart if held.start.position > Position(0) && *position <= held.start.position => {
                    *mark = None;
                }
                KnowsMarksAhead => *mark = Some(held.end.mark),
                MarksByTheEnd => *mark = mark.map(|mark| Mark(mark.0 ^ held.end.position.0)),
                _ => {}
            }
        }
        Ok(marks)
    }
}
