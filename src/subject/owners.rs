//! The owners of leases, as far as this process has asked for them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::session::LeaseId;

/// The most leases that are remembered.
const MAX_LEASES: usize = 65_536;

/// Remembers owners, which never change, so that a lookup of a session need not ask the storage for them.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<LeaseId, Arc<str>>>);

impl Owners {
    /// The owner of a lease, if it was asked for before.
    pub(super) fn known(&self, lease: LeaseId) -> Option<Arc<str>> {
        self.0.lock().get(&lease).cloned()
    }

    /// Remembers the owner of a lease.
    pub(super) fn remember(&self, lease: LeaseId, owner: &Arc<str>) {
        let mut owners = self.0.lock();
        // Most of them have ended by then, and those that have not are asked for again.
        if owners.len() >= MAX_LEASES {
            owners.clear();
        }
        owners.insert(lease, Arc::clone(owner));
    }
}
