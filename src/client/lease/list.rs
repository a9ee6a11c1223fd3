//! Listing the leases.

use std::time::Duration;

use crate::{
    client::{Client, ClientError, LeaseHolder, MAX_BATCH},
    duration, proto,
    session::LeaseId,
};

/// A query for leases. By default it matches all of them, up to 1,000 per page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseQuery {
    /// List only leases with exactly this owner. Empty matches all.
    pub owner: String,
    /// List only these leases. Empty matches all.
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
    /// More than [`MAX_BATCH`] `lease_ids` are sent in several parts, and no page is of more than one part. Pass the
    /// same ids for each page.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn list_leases(&self, query: LeaseQuery) -> Result<LeasePage, ClientError> {
        let LeaseQuery { owner, mut lease_ids, page_size, page_token } = query;
        if lease_ids.len() <= MAX_BATCH {
            return self.lease_page(owner, &lease_ids, page_size, page_token).await;
        }
        lease_ids.sort_unstable();
        lease_ids.dedup();
        let (nth, page_token) = part_of(page_token);
        let mut parts = lease_ids.chunks(MAX_BATCH).skip(nth);
        let Some(part) = parts.next() else { return Ok(LeasePage::default()) };
        let mut page = self.lease_page(owner, part, page_size, page_token).await?;
        page.next = match parts.next() {
            _ if !page.next.is_empty() => format!("{nth}.{}", page.next),
            Some(_) => format!("{}.", nth + 1),
            None => String::new(),
        };
        Ok(page)
    }

    async fn lease_page(
        &self,
        owner: String,
        lease_ids: &[LeaseId],
        page_size: u32,
        page_token: String,
    ) -> Result<LeasePage, ClientError> {
        let lease_ids = lease_ids.iter().map(|lease| lease.number()).collect();
        let request = proto::ListLeasesRequest { page_size, page_token, owner, lease_ids };
        let page = self.within_timeout(self.leases.clone().list_leases(request)).await?;
        let leases = page.leases.into_iter().map(status).collect::<Option<_>>();
        let leases = leases.ok_or(ClientError::Protocol("a listed lease without an id or a duration"))?;
        Ok(LeasePage { leases, next: page.next_page_token })
    }
}

/// Splits a token of a long list, `PART.TOKEN`, into the number of the part and the server's token.
fn part_of(token: String) -> (usize, String) {
    let part = token.split_once('.').and_then(|(nth, token)| Some((nth.parse().ok()?, token.to_owned())));
    // The server refuses a token that it has not made.
    part.unwrap_or((0, token))
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
