//! Writes standard output from a separate thread.
//!
//! A pipe with a slow reader blocks its writer. That must block neither the connection, which has pings to answer, nor
//! the handling of signals.

use std::{
    io::{self, Write as _},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::exit::{CliError, Exit};

/// How many chunks may wait for the reader of a pipe.
const WAITING_CHUNKS: usize = 4;

/// A handle to standard output.
pub(crate) struct Output {
    chunks: mpsc::Sender<String>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the thread that writes.
    pub(crate) fn stdout() -> Result<Self, CliError> {
        let (chunks, waiting) = mpsc::channel(WAITING_CHUNKS);
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("stdout".to_owned())
            .spawn(move || {
                // Nobody receives this if the program exits without waiting for its output.
                let _ = end.send(write_all(waiting));
            })
            .map_err(|error| {
                CliError::new(
                    Exit::No,
                    format!("cannot start a thread: {error}: check the resource limits of this process"),
                )
            })?;
        Ok(Self { chunks, ended })
    }

    /// Writes a chunk of whole lines and flushes it. Waits if several chunks are waiting for the reader.
    ///
    /// # Errors
    ///
    /// Returns an error if standard output is closed. Pass it to [`finish`](Self::finish), which knows why.
    pub(crate) async fn write(&self, chunk: String) -> Result<(), CliError> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks.send(chunk).await.map_err(|_| CliError::new(Exit::No, "standard output is closed"))
    }

    /// Waits until standard output is closed.
    pub(crate) async fn closed(&self) {
        self.chunks.closed().await;
    }

    /// Waits until everything is written, and returns `result`, or the error of the output if it failed.
    ///
    /// A reader that closes the pipe has read what it wanted, so that is not an error.
    pub(crate) async fn finish(self, result: Result<Exit, CliError>) -> Result<Exit, CliError> {
        drop(self.chunks);
        match self.ended.await {
            Ok(Ok(())) => result,
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
            Ok(Err(error)) => Err(CliError::new(
                Exit::No,
                format!("cannot write to standard output: {error}: check where it is redirected"),
            )),
            Err(_) => {
                Err(CliError::new(Exit::No, "the thread that writes standard output panicked: please report this"))
            }
        }
    }
}

fn write_all(mut chunks: mpsc::Receiver<String>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    while let Some(chunk) = chunks.blocking_recv() {
        stdout.write_all(chunk.as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}
