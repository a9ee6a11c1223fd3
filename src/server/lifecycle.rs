//! The stages of a server: serving, draining, stopped.

use tokio::sync::watch;

/// The stage of a server. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lifecycle {
    Serving,
    /// New connections and streams are refused, and open ones come to their end.
    Draining,
    /// The remaining connections are cut off.
    Stopped,
}

/// Waits until the server has reached `stage` or was dropped.
pub(super) async fn reached(lifecycle: &mut watch::Receiver<Lifecycle>, stage: Lifecycle) {
    // An error means that the server was dropped.
    let _ = lifecycle.wait_for(|now| *now >= stage).await;
}
