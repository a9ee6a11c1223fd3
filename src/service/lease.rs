//! `sessiond.v1.LeaseService` over a subject.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;

use super::{
    Calls,
    convert::{duration, duration_within},
    dispatch::{is_grpc, unary},
    response::ResponseBody,
};
use crate::{
    proto::{
        GrantLeaseRequest, GrantLeaseResponse, KeepLeaseAliveRequest, KeepLeaseAliveResponse, RevokeLeaseRequest,
        RevokeLeaseResponse,
    },
    session::LeaseId,
    status::ServiceError,
    subject::SessionSubject,
};

const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const MAX_OWNER: usize = 128;

/// The prefix of the paths of `sessiond.v1.LeaseService`.
pub(crate) const PATH: &str = "/sessiond.v1.LeaseService/";

/// `sessiond.v1.LeaseService` over a subject, for any HTTP/2 server.
///
/// Dispatched as the sessions are, so that what is refused has the same limits and the same details.
#[derive(Clone, Debug)]
pub struct LeaseService {
    calls: Calls,
    max_message_bytes: usize,
}

impl LeaseService {
    /// The service over `subject`; requests of more than `max_message_bytes` are refused.
    #[must_use]
    pub fn new(subject: Arc<SessionSubject>, max_message_bytes: usize) -> Self {
        Self { calls: Calls { subject }, max_message_bytes }
    }

    /// Answers one request. Dropping the future drops the call.
    pub async fn call<B>(self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        if !is_grpc(&request) {
            return ResponseBody::http(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let Self { calls, max_message_bytes: limit } = self;
        let answer = match request.uri().path().strip_prefix(PATH) {
            Some("GrantLease") => unary(calls, request, limit, Calls::grant_lease).await,
            Some("KeepLeaseAlive") => unary(calls, request, limit, Calls::keep_lease_alive).await,
            Some("RevokeLease") => unary(calls, request, limit, Calls::revoke_lease).await,
            _ => Err(ServiceError::UnknownMethod(request.uri().path().to_owned())),
        };
        answer.unwrap_or_else(ResponseBody::error)
    }
}

impl Calls {
    async fn grant_lease(self, request: GrantLeaseRequest) -> Result<GrantLeaseResponse, ServiceError> {
        let GrantLeaseRequest { ttl, owner } = request;
        let ttl = ttl.and_then(|ttl| duration_within(ttl, TTL)).ok_or(ServiceError::BadTtl)?;
        if owner.len() > MAX_OWNER {
            return Err(ServiceError::OwnerTooLong(owner.len()));
        }
        let lease = self.subject.grant_lease(ttl, &owner).await?;
        Ok(GrantLeaseResponse { lease_id: lease.number(), ttl: Some(duration(ttl)) })
    }

    async fn keep_lease_alive(self, request: KeepLeaseAliveRequest) -> Result<KeepLeaseAliveResponse, ServiceError> {
        let ttl = self.subject.keep_lease_alive(named(request.lease_id)?).await?;
        Ok(KeepLeaseAliveResponse { ttl: Some(duration(ttl)) })
    }

    async fn revoke_lease(self, request: RevokeLeaseRequest) -> Result<RevokeLeaseResponse, ServiceError> {
        let sessions_destroyed = self.subject.revoke_lease(named(request.lease_id)?).await?;
        Ok(RevokeLeaseResponse { sessions_destroyed })
    }
}

/// No lease has the number 0, so it is as good as one that is gone.
fn named(number: u64) -> Result<LeaseId, ServiceError> {
    LeaseId::from_number(number).ok_or(ServiceError::LeaseGone(number))
}
