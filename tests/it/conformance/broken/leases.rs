//! Faults in leases.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::LeaseId,
    storage::{LeasePage, LeaseQuery, MAX_LINGER, SessionStorage, StorageError},
};
use tokio::{task::yield_now, time::sleep};

use super::{Broken, SHORT_OF, dropped::WhenDropped, fault::Fault::*};
use crate::twisted::Twist;

/// Breaks the calls about leases.
#[derive(Debug)]
pub(super) struct Leases(pub(super) Arc<Broken>);

#[async_trait]
impl Twist for Leases {
    async fn grant_lease(
        &self,
        truth: &dyn SessionStorage,
        ttl: Duration,
        owner: &str,
    ) -> Result<LeaseId, StorageError> {
        self.0.admit()?;
        let ttl = match self.0.fault {
            ExpiresEarly => ttl - SHORT_OF,
            ExpiresLate => ttl + Duration::from_millis(1100),
            _ => ttl,
        };
        truth.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, truth: &dyn SessionStorage, lease: LeaseId) -> Result<Duration, StorageError> {
        match self.0.fault {
            ExpiresEarly => truth.keep_lease_alive(lease).await.map(|ttl| ttl + SHORT_OF),
            KeepsALongTtl => truth.keep_lease_alive(lease).await.map(|ttl| ttl + SHORT_OF),
            KeepsNothingAlive => Ok(Duration::from_secs(1)),
            KeepsRevokedLeases => Ok(truth.keep_lease_alive(lease).await.unwrap_or(Duration::from_secs(3600))),
            _ => truth.keep_lease_alive(lease).await,
        }
    }

    async fn lease_owner(&self, truth: &dyn SessionStorage, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        let owner = truth.lease_owner(lease).await?;
        Ok(match self.0.fault {
            ForgetsOwners => owner.map(|_| "".into()),
            TrimsOwners => owner.map(|owner| owner.trim().into()),
            _ => owner,
        })
    }

    async fn revoke_lease_with(
        &self,
        truth: &dyn SessionStorage,
        lease: LeaseId,
        linger: Duration,
    ) -> Result<u64, StorageError> {
        match self.0.fault {
            RevokesNothingWithoutRoom if self.0.refuses() => Err(StorageError::Refused(Broken::refusal())),
            MiscountsARevoke => truth.revoke_lease_with(lease, linger).await.map(|count| count + 1),
            ForgetsADroppedRevoke => {
                if !self.0.state().revoked.insert(lease) {
                    return Err(StorageError::UnknownLease(lease));
                }
                yield_now().await;
                truth.revoke_lease_with(lease, linger).await
            }
            IgnoresALinger if !linger.is_zero() => Ok(0),
            EndsALingerEarly => truth.revoke_lease_with(lease, linger.saturating_sub(SHORT_OF)).await,
            NeverEndsALinger if !linger.is_zero() => truth.revoke_lease_with(lease, MAX_LINGER).await,
            IgnoresASecondRevoke if !linger.is_zero() && self.0.state().lingering.contains(&lease) => Ok(0),
            LingersLate if !linger.is_zero() => {
                self.0.state().lingers_late = Some((lease, 3));
                Ok(0)
            }
            _ => {
                self.0.state().lingering.insert(lease);
                truth.revoke_lease_with(lease, linger).await
            }
        }
    }

    async fn list_leases(&self, truth: &dyn SessionStorage, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        if self.0.fault == EndsAListAtALimitOfZero && query.limit == 0 {
            return Ok(LeasePage::default());
        }
        let mut page = truth.list_leases(query).await?;
        match self.0.fault {
            ListsNoSessions => page.leases.iter_mut().for_each(|status| status.session_count = 0),
            SkipsALeaseAtAPageEnd if page.leases.len() == query.limit && query.limit > 1 => drop(page.leases.pop()),
            _ => {}
        }
        Ok(page)
    }

    async fn expire_leases(&self, truth: &dyn SessionStorage) -> Result<Infallible, StorageError> {
        let _dropped = WhenDropped(|| self.0.state().expiry_dropped = true);
        if self.0.fault == ExpiresNothingWithoutRoom {
            let refused = async {
                while !self.0.refuses() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                ended = truth.expire_leases() => return ended,
                () = refused => return Err(StorageError::Refused(Broken::refusal())),
            }
        }
        let dropped = self.0.state().expiry_dropped;
        if self.0.fault == ForgetsADroppedExpiry && dropped {
            pending::<()>().await;
        }
        truth.expire_leases().await
    }
}
