//! The owners of leases, as far as this process has asked for them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{session::LeaseId, storage::StorageError};

/// The most leases that are remembered.
const MAX_LEASES: usize = 65_536;

/// Remembers owners, which never change, so that a lookup of a session need not ask the storage for them.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<LeaseId, Arc<str>>>);

impl Owners {
    /// The owner of a lease, by `ask` if it is not known yet.
    pub(super) async fn get(
        &self,
        lease: LeaseId,
        ask: impl Future<Output = Result<Option<Arc<str>>, StorageError>>,
    ) -> Result<Option<Arc<str>>, StorageError> {
        if let Some(owner) = self.0.lock().get(&lease) {
            return Ok(Some(Arc::clone(owner)));
        }
        let owner = ask.await?;
        if let Some(owner) = &owner {
            let mut owners = self.0.lock();
            // Most of them have ended by then, and those that have not are asked for again.
            if owners.len() >= MAX_LEASES {
                owners.clear();
            }
            owners.insert(lease, Arc::clone(owner));
        }
        Ok(owner)
    }
}
