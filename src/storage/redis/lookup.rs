//! Lookups of the leases that sessions of one partition are under.
//!
//! One script reads a session's slot, and whether the lease of that slot is attached: read apart, they need not fit each other.

use super::{
    ending::State,
    fault::Fault,
    lease::lease_number,
    partition::{ASK, Partition},
    registry::{Identity, Registry, session_bytes},
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::Lookup,
};

/// The most sessions of one script: they take Redis a millisecond.
const SESSIONS_A_SCRIPT: usize = 256;

/// A letter and a lease: see `lookup.lua`.
const FOUND_BYTES: usize = 9;

impl Registry {
    /// Looks up sessions that belong to `partition` by `identity`.
    pub(super) async fn lookup(
        &self,
        partition: &Partition,
        identity: &Identity,
        sessions: &[SessionKey],
    ) -> Result<Vec<Lookup>, Fault> {
        let mut all = Vec::with_capacity(sessions.len());
        for some in sessions.chunks(SESSIONS_A_SCRIPT) {
            let keys: Vec<u8> = some.iter().flat_map(session_bytes).collect();
            let found = partition.run::<Vec<u8>>(ASK, |_| {
                let call = self.call(&self.scripts.lookup, partition, &["attached", "slots"], some.len());
                let bucket = |session| partition.bucket_key(self.bucket_of(identity, session));
                let call = some.iter().fold(call, |call, session| call.arg(bucket(session)));
                call.arg(&identity.birth).arg(partition.read_up_to()).arg(&keys)
            });
            let found = found.await?;
            if found.len() != some.len() * FOUND_BYTES {
                return Err(Fault::malformed("a lookup gave too few answers"));
            }
            for one in found.chunks_exact(FOUND_BYTES) {
                let lease = match (one[0], LeaseId::from_number(lease_number(&one[1..]))) {
                    (b'Z', Some(lease)) => self.lives(lease).await?.then_some(lease),
                    (_, lease) => lease,
                };
                all.push(Lookup { exists: one[0] != b'-', lease });
            }
        }
        Ok(all)
    }

    /// Returns whether a lease that is closed in some partition lives on; if not, it has ended everywhere.
    pub(super) async fn lives(&self, lease: LeaseId) -> Result<bool, Fault> {
        loop {
            match self.state_of(lease).await? {
                State::Lives => return Ok(true),
                State::Ending(known) => self.finish_ending(lease, &known).await?,
                State::Ended(_) | State::Gone => return Ok(false),
            }
        }
    }
}
