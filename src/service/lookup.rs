//! Which gateway has a session, on values of the protocol.

use super::{
    Calls,
    convert::{lease_number, session_key},
    first,
};
use crate::{
    proto::{
        BatchLookupSessionsRequest, BatchLookupSessionsResponse, Lease, LookupSessionRequest, LookupSessionResponse,
    },
    service::ServiceError,
    session::LeaseId,
    storage::Lookup,
};

/// A lease may end between a call about its session and the lookup of its owner. The call is made so often.
pub(super) const HOLDER_TRIES: u32 = 3;

impl Calls {
    pub(super) async fn lookup(self, request: LookupSessionRequest) -> Result<LookupSessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let mut exists = false;
        for _ in 0..HOLDER_TRIES {
            let found = self.shared.subject.lookup(&[session]).await?;
            let Lookup { exists: found, lease } = *first(&found)?;
            exists = found;
            let Some(lease) = lease else { break };
            let lease = self.holder(lease).await?;
            if lease.is_some() {
                return Ok(LookupSessionResponse { exists, lease });
            }
        }
        Ok(LookupSessionResponse { exists, lease: None })
    }

    pub(super) async fn batch_lookup(
        self,
        request: BatchLookupSessionsRequest,
    ) -> Result<BatchLookupSessionsResponse, ServiceError> {
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let found = self.shared.subject.lookup(&sessions).await?;
        Ok(BatchLookupSessionsResponse {
            exists: found.iter().map(|found| found.exists).collect(),
            lease_ids: found.iter().map(|found| lease_number(found.lease)).collect(),
        })
    }

    /// The lease with its owner. None if it has ended.
    pub(super) async fn holder(&self, lease: LeaseId) -> Result<Option<Lease>, ServiceError> {
        let owner = self.shared.subject.lease_owner(lease).await?;
        Ok(owner.map(|owner| Lease { lease_id: lease.number(), owner: (*owner).to_owned() }))
    }
}
