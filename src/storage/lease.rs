//! Listing the leases of a storage.

use std::{sync::Arc, time::Duration};

use crate::session::LeaseId;

/// The shortest ttl of a lease that a storage need keep to.
pub const MIN_TTL: Duration = Duration::from_secs(1);

/// The longest ttl of a lease.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// The longest owner of a lease, in bytes of UTF-8.
pub const MAX_OWNER_BYTES: usize = 128;

/// The longest linger of a revoked lease.
pub const MAX_LINGER: Duration = Duration::from_secs(3600);

/// Which leases to list, and where to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseQuery {
    /// Only leases with a higher id than this one: the [`LeasePage::next`] of the page before. `None` for the first
    /// page.
    pub after: Option<LeaseId>,
    /// The maximum number of leases in the answer. 0 counts as 1.
    pub limit: usize,
    /// Only leases with exactly this owner. `None` for all.
    pub owner: Option<String>,
    /// Only these leases. Empty for all.
    pub lease_ids: Vec<LeaseId>,
}

impl LeaseQuery {
    /// Asks for the first `limit` leases.
    #[must_use]
    pub const fn first(limit: usize) -> Self {
        Self { after: None, limit, owner: None, lease_ids: Vec::new() }
    }

    setters!(into after: Option<LeaseId>, lease_ids: Vec<LeaseId>);

    /// Asks only for leases with exactly this owner.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }
}

/// A page of leases, ordered by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeasePage {
    /// The leases. A page may be short or even empty although another one follows.
    pub leases: Vec<LeaseStatus>,
    /// The [`LeaseQuery::after`] of the next page. `None` if this is the last one.
    pub next: Option<LeaseId>,
}

impl LeasePage {
    /// Makes a page.
    #[must_use]
    pub const fn new(leases: Vec<LeaseStatus>, next: Option<LeaseId>) -> Self {
        Self { leases, next }
    }
}

/// A lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The id of the lease.
    pub lease: LeaseId,
    /// The owner of the lease, by convention the address of a gateway.
    pub owner: Arc<str>,
    /// How long the lease lives without being kept alive.
    pub ttl: Duration,
    /// The time until the lease ends, unless it is kept alive. A lease that lingers cannot be kept alive.
    pub expires_in: Duration,
    /// The number of sessions under the lease. Exact in each partition at the moment when it was counted.
    pub session_count: u64,
    /// Whether the lease was revoked with a linger that has not passed yet.
    pub lingers: bool,
}

impl LeaseStatus {
    /// Describes a lease without sessions that does not linger and was just kept alive.
    #[must_use]
    pub const fn new(lease: LeaseId, owner: Arc<str>, ttl: Duration) -> Self {
        Self { lease, owner, ttl, expires_in: ttl, session_count: 0, lingers: false }
    }

    setters!(const expires_in: Duration, session_count: u64, lingers: bool);
}
