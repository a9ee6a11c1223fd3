//! The signals that end a command.

use std::{fs, future::pending};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{CliError, Exit};

/// Receives SIGINT (Ctrl-C), SIGTERM and SIGHUP, which then no longer kill the process.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the process ignores SIGHUP, as it does under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    /// Starts to receive the signals.
    ///
    /// # Errors
    ///
    /// Returns an error if the system refuses to install a signal handler.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                let what = format!("cannot handle signals: {error}: check the resource limits of this process");
                CliError::new(Exit::No, what)
            })
        };
        let hangup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())?, hangup })
    }

    /// Waits for the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Returns whether the process was started with SIGHUP ignored, as by `nohup`. Installing a handler would undo that.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1, the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
