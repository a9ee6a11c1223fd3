//! Listing the leases.

use std::time::Duration;

use crate::{
    client::{Client, ClientError, LeaseHolder},
    duration, proto,
    session::LeaseId,
};

/// A query for leases. By default it matches all of them, up to 1,000 per page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseQuery {
    /// List only leases with exactly this owner. Empty matches all.
    pub owner: String,
    /// List only these leases, up to 65,536. Empty matches all.
    pub lease_ids: Vec<LeaseId>,
    /// The largest number of leases per page, at most 10,000. 0 means 1,000.
    pub page_size: u32,
    /// The [`LeasePage::next`] of the previous page. Empty for the first page.
    pub page_token: String,
}

/// A page of leases, ordered by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeasePage {
    /// The leases. A page may be short or even empty although another one follows.
    pub leases: Vec<LeaseStatus>,
    /// The token of the next page. Empty if this is the last one.
    pub next: String,
}

/// A lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The lease and its owner.
    pub lease: LeaseHolder,
    /// How long the lease lives without being kept alive.
    pub ttl: Duration,
    /// The time until the lease ends, unless it is kept alive. A lease that lingers cannot be kept alive.
    pub expires_in: Duration,
    /// The number of sessions under the lease.
    pub session_count: u64,
    /// Whether the lease was revoked with a linger that has not passed yet.
    pub lingers: bool,
}

impl Client {
    /// Lists the leases that have not ended, one page per call.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn list_leases(&self, query: LeaseQuery) -> Result<LeasePage, ClientError> {
        let LeaseQuery { owner, lease_ids, page_size, page_token } = query;
        let lease_ids = lease_ids.into_iter().map(LeaseId::number).collect();
        let request = proto::ListLeasesRequest { page_size, page_token, owner, lease_ids };
        let page = self.within_timeout(self.leases.clone().list_leases(request)).await?;
        let leases = page.leases.into_iter().map(status).collect::<Option<_>>();
        let leases = leases.ok_or(ClientError::Protocol("a listed lease without an id or a duration"))?;
        Ok(LeasePage { leases, next: page.next_page_token })
    }
}

fn status(status: proto::LeaseStatus) -> Option<LeaseStatus> {
    Some(LeaseStatus {
        lease: LeaseHolder::from_proto(status.lease?)?,
        ttl: duration::from_proto(status.ttl?)?,
        expires_in: duration::from_proto(status.expires_in?)?,
        session_count: status.session_count,
        lingers: status.lingers,
    })
}
