//! Notices that another server has taken over, although all connections still work.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{fault::Fault, registry::Registry};

/// The interval between new connections.
const INTERVAL: Duration = Duration::from_millis(500);

impl Registry {
    /// Connects anew from time to time, to find out which server the host name resolves to now, or which node owns a
    /// partition. Existing connections stay with the old server. Runs until the future is dropped.
    pub(super) async fn follow_servers(self: Arc<Self>) {
        for turn in 0.. {
            sleep(INTERVAL).await;
            if let Err(fault) = self.follow_server(turn).await {
                tracing::debug!(
                    error = &fault as &dyn Error,
                    "cannot find out which server Redis' host name resolves to"
                );
            }
        }
    }

    /// `turn` selects the partition of a cluster.
    async fn follow_server(&self, turn: usize) -> Result<(), Fault> {
        let partitions = self.partitions();
        let one = turn % partitions.len();
        let connected = self.servers().connect(&partitions[one].key("meta")).await?;
        // Outside a cluster, one server has all partitions.
        let affected = if self.servers().is_cluster() { one..one + 1 } else { 0..partitions.len() };
        for partition in &partitions[affected] {
            partition.newest.note(&connected.server);
        }
        Ok(())
    }
}
