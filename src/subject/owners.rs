//! Caches the owners of leases.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::session::LeaseId;

/// The maximum number of owners in the cache.
const MAX_LEASES: usize = 65_536;

/// A cache of owners, so that looking up a session need not also look up its lease in the storage. Owners never change.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<LeaseId, Arc<str>>>);

impl Owners {
    /// Returns the owner of a lease, if it is in the cache.
    pub(super) fn known(&self, lease: LeaseId) -> Option<Arc<str>> {
        self.0.lock().get(&lease).cloned()
    }

    /// Adds the owner of a lease to the cache.
    pub(super) fn remember(&self, lease: LeaseId, owner: &Arc<str>) {
        let mut owners = self.0.lock();
        // Most of these leases have ended by then. The owners of the others are looked up again.
        if owners.len() >= MAX_LEASES {
            owners.clear();
        }
        owners.insert(lease, Arc::clone(owner));
    }
}
