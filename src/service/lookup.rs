//! Implements the calls that look up which lease, and so which gateway, holds a session.

use super::{Calls, first};
use crate::{
    proto::{Lease, LookupSessionResponse},
    service::ServiceError,
    session::{LeaseId, SessionKey},
    storage::Lookup,
};

/// The maximum number of tries to find a session's lease and then the lease's owner. If the lease ends between the two,
/// the next try looks up both again.
pub(super) const HOLDER_TRIES: u32 = 3;

impl Calls {
    pub(super) async fn lookup(&self, session: SessionKey) -> Result<LookupSessionResponse, ServiceError> {
        let mut exists = false;
        for _ in 0..HOLDER_TRIES {
            let found = self.subject.lookup(&[session]).await?;
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

    /// Returns the lease with its owner, or `None` if the lease has ended.
    pub(super) async fn holder(&self, lease: LeaseId) -> Result<Option<Lease>, ServiceError> {
        let owner = self.subject.lease_owner(lease).await?;
        Ok(owner.map(|owner| Lease { lease_id: lease.number(), owner: (*owner).to_owned() }))
    }
}
