//! `sessiond.v1.LeaseService` over a subject.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use tonic::{Request, Response, Status};

use super::convert::{duration, duration_within};
use crate::{
    proto::{
        GrantLeaseRequest, GrantLeaseResponse, KeepLeaseAliveRequest, KeepLeaseAliveResponse, RevokeLeaseRequest,
        RevokeLeaseResponse, lease_service_server,
    },
    session::LeaseId,
    status::ServiceError,
    subject::SessionSubject,
};

const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const MAX_OWNER: usize = 128;

/// The calls of `sessiond.v1.LeaseService`. They are few beside those of the sessions, and go through tonic's generated server.
#[derive(Clone, Debug)]
pub struct LeaseService {
    subject: Arc<SessionSubject>,
}

impl LeaseService {
    /// The service over `subject`.
    #[must_use]
    pub fn new(subject: Arc<SessionSubject>) -> Self {
        Self { subject }
    }
}

#[tonic::async_trait]
impl lease_service_server::LeaseService for LeaseService {
    async fn grant_lease(&self, request: Request<GrantLeaseRequest>) -> Result<Response<GrantLeaseResponse>, Status> {
        let GrantLeaseRequest { ttl, owner } = request.into_inner();
        let ttl = ttl.and_then(|ttl| duration_within(ttl, TTL)).ok_or(ServiceError::BadTtl)?;
        if owner.len() > MAX_OWNER {
            return Err(ServiceError::OwnerTooLong(owner.len()).into());
        }
        let lease = self.subject.grant_lease(ttl, &owner).await?;
        Ok(Response::new(GrantLeaseResponse { lease_id: lease.number(), ttl: Some(duration(ttl)) }))
    }

    async fn keep_lease_alive(
        &self,
        request: Request<KeepLeaseAliveRequest>,
    ) -> Result<Response<KeepLeaseAliveResponse>, Status> {
        let lease = named(request.into_inner().lease_id)?;
        let ttl = self.subject.keep_lease_alive(lease).await?;
        Ok(Response::new(KeepLeaseAliveResponse { ttl: Some(duration(ttl)) }))
    }

    async fn revoke_lease(
        &self,
        request: Request<RevokeLeaseRequest>,
    ) -> Result<Response<RevokeLeaseResponse>, Status> {
        let lease = named(request.into_inner().lease_id)?;
        let sessions_destroyed = self.subject.revoke_lease(lease).await?;
        Ok(Response::new(RevokeLeaseResponse { sessions_destroyed }))
    }
}

/// No lease has the number 0, so it is as good as one that is gone.
fn named(number: u64) -> Result<LeaseId, ServiceError> {
    LeaseId::from_number(number).ok_or(ServiceError::LeaseGone(number))
}
