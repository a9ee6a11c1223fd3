//! Registries that a factory can make refuse changes.

use std::sync::Arc;

use async_trait::async_trait;

use crate::storage::{RefusalCause, SessionStorage};

/// A registry whose storage can be made to refuse changes.
pub struct Refusable {
    /// The handles to the registry, as [`StorageFactory::open`](super::StorageFactory::open) gives them.
    pub handles: Vec<Arc<dyn SessionStorage>>,
    /// Makes it refuse changes.
    pub switch: Box<dyn RefusalSwitch>,
}

/// Makes the storage of one registry refuse changes, for a cause of the factory's choice.
#[async_trait]
pub trait RefusalSwitch: Send + Sync {
    /// The cause that [`writability`](SessionStorage::writability) must name.
    fn cause(&self) -> RefusalCause;

    /// Whether leases are still kept alive, revoked and expired while changes are refused, and their sessions destroyed. They must
    /// be when the storage merely has no room to grow. Destroying sessions by request may succeed then, too.
    fn leases_go_on(&self) -> bool {
        false
    }

    /// Makes the storage refuse changes. It must still be readable. Panics when that fails.
    async fn refuse(&self);

    /// Lets the storage accept changes again. Panics when that fails.
    async fn accept(&self);
}
