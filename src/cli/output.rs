//! Standard output, written by a thread of its own.
//!
//! A pipe whose reader is slow blocks whoever writes to it. It must not block the connection, whose pings want to be
//! answered, nor signals.

use std::{
    io::{self, Write as _},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::exit::{CliError, Exit};

/// How many chunks may wait for the reader of a pipe.
const WAITING_CHUNKS: usize = 4;

/// Standard output.
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
                // Nobody listens any more where the program exits without waiting for its output.
                let _ = end.send(write_all(waiting));
            })
            .map_err(|error| {
                CliError::new(Exit::No, format!("cannot start a thread: {error}: look at the limits of this process"))
            })?;
        Ok(Self { chunks, ended })
    }

    /// Writes a chunk of whole lines, and flushes it. Waits for the reader of a pipe, a few chunks behind.
    ///
    /// # Errors
    ///
    /// An error whose meaning [`finish`](Self::finish) knows: return it to there.
    pub(crate) async fn write(&self, chunk: String) -> Result<(), CliError> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks.send(chunk).await.map_err(|_| CliError::new(Exit::No, "standard output is closed"))
    }

    /// Waits until nothing can be written any more.
    pub(crate) async fn closed(&self) {
        self.chunks.closed().await;
    }

    /// Waits until all is written, and tells how the command ended: with `result`, unless the output failed. A reader
    /// that left had all that it wanted, which is no error.
    pub(crate) async fn finish(self, result: Result<Exit, CliError>) -> Result<Exit, CliError> {
        drop(self.chunks);
        match self.ended.await {
            Ok(Ok(())) => result,
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
            Ok(Err(error)) => Err(CliError::new(
                Exit::No,
                format!("cannot write to standard output: {error}: see where it is directed to"),
            )),
            Err(_) => Err(CliError::new(Exit::No, "standard output was abandoned: please report this")),
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
