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

/// A page of leases, ordered by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeasePage {
    /// The leases. A page may be short or even empty although another one follows.
    pub leases: Vec<LeaseStatus>,
    /// The [`LeaseQuery::after`] of the next page. `None` if this is the last one.
    pub next: Option<LeaseId>,
}

/// A lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
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
