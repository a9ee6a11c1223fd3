//! The calls of `sessiond.v1.LeaseService`, on values of the protocol.

use std::{ops::RangeInclusive, time::Duration};

use super::{Calls, convert::duration_within};
use crate::{
    duration,
    proto::{
        GrantLeaseRequest, GrantLeaseResponse, KeepLeaseAliveRequest, KeepLeaseAliveResponse, RevokeLeaseRequest,
        RevokeLeaseResponse,
    },
    session::LeaseId,
    status::ServiceError,
};

const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const MAX_OWNER: usize = 128;

impl Calls {
    pub(super) async fn grant_lease(self, request: GrantLeaseRequest) -> Result<GrantLeaseResponse, ServiceError> {
        let GrantLeaseRequest { ttl, owner } = request;
        let ttl = ttl.and_then(|ttl| duration_within(ttl, TTL)).ok_or(ServiceError::BadTtl)?;
        if owner.len() > MAX_OWNER {
            return Err(ServiceError::OwnerTooLong(owner.len()));
        }
        let lease = self.shared.subject.grant_lease(ttl, &owner).await?;
        Ok(GrantLeaseResponse { lease_id: lease.number(), ttl: Some(duration::to_proto(ttl)) })
    }

    pub(super) async fn keep_lease_alive(
        self,
        request: KeepLeaseAliveRequest,
    ) -> Result<KeepLeaseAliveResponse, ServiceError> {
        // In a box, because it is rare and would make the future of every call larger.
        let ttl = Box::pin(self.shared.subject.keep_lease_alive(named(request.lease_id)?)).await?;
        Ok(KeepLeaseAliveResponse { ttl: Some(duration::to_proto(ttl)) })
    }

    pub(super) async fn revoke_lease(self, request: RevokeLeaseRequest) -> Result<RevokeLeaseResponse, ServiceError> {
        let sessions_destroyed = self.shared.subject.revoke_lease(named(request.lease_id)?).await?;
        Ok(RevokeLeaseResponse { sessions_destroyed })
    }
}

/// No lease has the number 0, so it is as good as one that is gone.
fn named(number: u64) -> Result<LeaseId, ServiceError> {
    LeaseId::from_number(number).ok_or(ServiceError::LeaseGone(number))
}
