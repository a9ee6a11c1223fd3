//! What a snapshot reads: the buckets that have sessions under some leases, and the sessions in some buckets.

use super::LogPoint;
use crate::session::{LeaseId, SessionKey};

/// The buckets that have sessions under some leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseBuckets {
    /// For each partition, the point of its log at which the answer is true, never before the known one.
    pub points: Vec<LogPoint>,
    /// The buckets that have sessions under the leases, in ascending order, and perhaps other buckets. A session counts
    /// as being under the lease that the log names, even if that lease has ended.
    pub buckets: Vec<u32>,
}

impl LeaseBuckets {
    /// Makes the answer, with a point for each partition.
    #[must_use]
    pub const fn new(points: Vec<LogPoint>, buckets: Vec<u32>) -> Self {
        Self { points, buckets }
    }
}

/// The sessions in some buckets. The default is the answer for no bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketRun {
    /// For each bucket that was read, in order, the point of its partition's log that its sessions reflect. All belong
    /// to one history.
    pub points: Vec<LogPoint>,
    /// The sessions in those buckets, in any order.
    pub sessions: Vec<SessionKey>,
    /// The lease of each of these sessions, if leases were requested. Empty otherwise.
    pub leases: Vec<Option<LeaseId>>,
}
