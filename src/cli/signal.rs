//! The signals that end a command.

use std::{future::Future, io};

/// Begins to listen for SIGINT (Ctrl-C) and SIGTERM; the future ends with the first of them.
///
/// # Errors
///
/// When the system does not let the process handle signals.
#[cfg(unix)]
pub(crate) fn interrupted() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Begins to listen for Ctrl-C; the future ends with it.
///
/// # Errors
///
/// None on this system.
#[cfg(not(unix))]
pub(crate) fn interrupted() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
