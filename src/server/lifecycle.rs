//! How far a server has come.

use tokio::sync::watch;

/// What a server does; it only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lifecycle {
    Serving,
    /// No new connections and streams; those there are come to their end.
    Draining,
    /// What is left is cut off.
    Stopped,
}

/// Waits until the server has come to `stage`, or is gone.
pub(super) async fn reached(lifecycle: &mut watch::Receiver<Lifecycle>, stage: Lifecycle) {
    // An error tells that the server is gone.
    let _ = lifecycle.wait_for(|now| *now >= stage).await;
}
