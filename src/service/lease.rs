//! Implements the calls of `sessiond.v1.LeaseService`.

use std::{ops::RangeInclusive, time::Duration};

use tonic::{Request, Response, Status};

use super::{
    Calls, MAX_BATCH,
    convert::{self, duration_within},
};
use crate::{
    duration,
    proto::{
        self, GrantLeaseRequest, GrantLeaseResponse, KeepLeaseAliveRequest, KeepLeaseAliveResponse, ListLeasesRequest,
        ListLeasesResponse, RevokeLeaseRequest, RevokeLeaseResponse, lease_service_server::LeaseService,
    },
    service::ServiceError,
    session::LeaseId,
    storage::{LeasePage, LeaseQuery, LeaseStatus, MAX_LINGER, MAX_OWNER_BYTES, MAX_TTL, MIN_TTL},
};

const TTL: RangeInclusive<Duration> = MIN_TTL..=MAX_TTL;
const LINGER: RangeInclusive<Duration> = Duration::ZERO..=MAX_LINGER;
const DEFAULT_PAGE: u32 = 1000;
const MAX_PAGE: u32 = 10_000;

#[tonic::async_trait]
impl LeaseService for Calls {
    async fn grant_lease(&self, request: Request<GrantLeaseRequest>) -> Result<Response<GrantLeaseResponse>, Status> {
        let GrantLeaseRequest { ttl, owner } = request.into_inner();
        let ttl = ttl.and_then(|ttl| duration_within(ttl, TTL)).ok_or(ServiceError::BadTtl)?;
        if owner.len() > MAX_OWNER_BYTES {
            return Err(ServiceError::OwnerTooLong(owner.len()).into());
        }
        let lease = self.subject.grant_lease(ttl, &owner).await?;
        Ok(Response::new(GrantLeaseResponse { lease_id: lease.number(), ttl: Some(duration::to_proto(ttl)) }))
    }

    async fn keep_lease_alive(
        &self,
        request: Request<KeepLeaseAliveRequest>,
    ) -> Result<Response<KeepLeaseAliveResponse>, Status> {
        let ttl = self.subject.keep_lease_alive(named(request.into_inner().lease_id)?).await?;
        Ok(Response::new(KeepLeaseAliveResponse { ttl: Some(duration::to_proto(ttl)) }))
    }

    async fn revoke_lease(
        &self,
        request: Request<RevokeLeaseRequest>,
    ) -> Result<Response<RevokeLeaseResponse>, Status> {
        let RevokeLeaseRequest { lease_id, linger } = request.into_inner();
        let linger = linger.map_or(Some(Duration::ZERO), |linger| duration_within(linger, LINGER));
        let linger = linger.ok_or(ServiceError::BadLinger)?;
        let sessions_destroyed = self.subject.revoke_lease_with(named(lease_id)?, linger).await?;
        Ok(Response::new(RevokeLeaseResponse { sessions_destroyed }))
    }

    async fn list_leases(&self, request: Request<ListLeasesRequest>) -> Result<Response<ListLeasesResponse>, Status> {
        let ListLeasesRequest { page_size, page_token, owner, lease_ids } = request.into_inner();
        let (count, limit) = (lease_ids.len(), MAX_BATCH);
        if count > limit {
            return Err(ServiceError::TooManyLeaseIds { count, limit }.into());
        }
        let after = if page_token.is_empty() { None } else { Some(page_after(&page_token)?) };
        let query = LeaseQuery {
            after,
            limit: if page_size == 0 { DEFAULT_PAGE } else { page_size.min(MAX_PAGE) } as usize,
            owner: (!owner.is_empty()).then_some(owner),
            lease_ids: lease_ids.into_iter().map(convert::lease_to_match).collect(),
        };
        let LeasePage { leases, next } = self.subject.list_leases(&query).await?;
        Ok(Response::new(ListLeasesResponse {
            leases: leases.into_iter().map(status).collect(),
            next_page_token: next.map(page_token_after).unwrap_or_default(),
        }))
    }
}

/// Returns the token of the page that starts after `lease`: the lease id in hexadecimal.
fn page_token_after(lease: LeaseId) -> String {
    format!("{:x}", lease.number())
}

/// Returns the lease after which the page of `token` starts.
fn page_after(token: &str) -> Result<LeaseId, ServiceError> {
    let number = u64::from_str_radix(token, 16).ok().filter(|number| format!("{number:x}") == token);
    number.and_then(LeaseId::from_number).ok_or(ServiceError::MalformedPageToken)
}

fn status(status: LeaseStatus) -> proto::LeaseStatus {
    let LeaseStatus { lease, owner, ttl, expires_in, session_count, lingers } = status;
    proto::LeaseStatus {
        lease: Some(proto::Lease { lease_id: lease.number(), owner: (*owner).to_owned() }),
        ttl: Some(duration::to_proto(ttl)),
        expires_in: Some(duration::to_proto(expires_in)),
        session_count,
        lingers,
    }
}

/// Returns the lease of a call about a lease. No lease has the number 0, so 0 counts as a lease that is gone.
fn named(number: u64) -> Result<LeaseId, ServiceError> {
    LeaseId::from_number(number).ok_or(ServiceError::LeaseGone(number))
}
