//! Registries that can be made to refuse changes.

use std::sync::Arc;

use async_trait::async_trait;

use crate::storage::{RefusalCause, SessionStorage};

/// A registry whose storage can be made to refuse changes.
#[non_exhaustive]
pub struct Refusable {
    /// The handles to the registry, as for [`StorageFactory::open`](super::StorageFactory::open).
    pub handles: Vec<Arc<dyn SessionStorage>>,
    /// Makes the registry refuse and accept changes.
    pub switch: Box<dyn RefusalSwitch>,
}

impl Refusable {
    /// Makes a registry of its handles and its switch.
    pub fn new(handles: Vec<Arc<dyn SessionStorage>>, switch: impl RefusalSwitch + 'static) -> Self {
        Self { handles, switch: Box::new(switch) }
    }
}

/// Makes the storage of one registry refuse changes, for a cause that the factory chooses.
#[async_trait]
pub trait RefusalSwitch: Send + Sync {
    /// The cause that [`writability`](SessionStorage::writability) must name.
    fn cause(&self) -> RefusalCause;

    /// Whether leases can still be kept alive, revoked and expired while changes are refused, and their sessions
    /// destroyed. This must be true if the storage merely has no room to grow. Requests to destroy sessions may then
    /// succeed too.
    fn leases_go_on(&self) -> bool {
        false
    }

    /// Makes the storage refuse changes, while it can still be read. Panics if this fails.
    async fn refuse(&self);

    /// Makes the storage accept changes again. Panics if this fails.
    async fn accept(&self);
}
