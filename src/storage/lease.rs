//! What a storage tells of its leases.

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

/// Which leases to list, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseQuery {
    /// Only leases with a higher id than this one.
    pub after: Option<LeaseId>,
    /// The most leases of the answer. 0 counts as 1.
    pub limit: usize,
    /// Only leases that were granted to exactly this owner.
    pub owner: Option<String>,
    /// Only these leases; empty for all.
    pub lease_ids: Vec<LeaseId>,
}

/// Some leases, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeasePage {
    /// The leases. There may be fewer than the limit, or none, although others follow.
    pub leases: Vec<LeaseStatus>,
    /// If others may follow, the [`LeaseQuery::after`] that finds them.
    pub next: Option<LeaseId>,
}

/// One lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The lease.
    pub lease: LeaseId,
    /// Who it was granted to.
    pub owner: Arc<str>,
    /// How long it lives without being kept alive.
    pub ttl: Duration,
    /// When it ends if nobody keeps it alive. A lease that lingers ends then in any case.
    pub expires_in: Duration,
    /// How many sessions are under it. Exact in each partition at the moment when it was counted.
    pub session_count: u64,
    /// Whether it lingers: it was revoked, and ends when its linger has passed.
    pub lingers: bool,
}
