//! Which leases there are.

use std::time::Duration;

use crate::{
    client::{Client, ClientError, LeaseHolder},
    duration, proto,
    session::LeaseId,
};

/// Which leases to list. By default all of them, up to 1,000 in a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseQuery {
    /// Only leases that were granted to exactly this owner; empty for all.
    pub owner: String,
    /// Only these leases, up to 65,536; empty for all.
    pub lease_ids: Vec<LeaseId>,
    /// The most leases of a page: 1,000 if it is 0, at most 10,000.
    pub page_size: u32,
    /// The [`LeasePage::next`] of the page before; empty for the first page.
    pub page_token: String,
}

/// Some leases, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeasePage {
    /// The leases. There may be fewer than asked for, or none, although another page follows.
    pub leases: Vec<LeaseStatus>,
    /// The token of the next page; empty if there is none.
    pub next: String,
}

/// A lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The lease and its owner.
    pub lease: LeaseHolder,
    /// How long it lives without being kept alive.
    pub ttl: Duration,
    /// When it ends if nobody keeps it alive. A lease that lingers ends then in any case.
    pub expires_in: Duration,
    /// How many sessions are under it.
    pub session_count: u64,
    /// Whether it was revoked with a linger that has not passed yet.
    pub lingers: bool,
}

impl Client {
    /// Lists a page of the leases that have not ended.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
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
