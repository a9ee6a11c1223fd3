//! The signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{CliError, Exit};

/// SIGINT (Ctrl-C) and SIGTERM, which from now on do not kill the process.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// When the system does not let the process handle signals.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                let what = format!("cannot listen for signals: {error}: look at the limits of this process");
                CliError::new(Exit::No, what)
            })
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next of them. Cancellation safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
