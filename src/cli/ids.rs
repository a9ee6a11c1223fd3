//! The session ids that a command is given, from its arguments and from standard input.

use std::{
    io::{self, BufRead, Read as _},
    str::FromStr,
    thread, vec,
};

use sessiond::session::{ParseIdError, SessionId};
use tokio::sync::mpsc;

use super::exit::{CliError, Exit};

/// The maximum number of ids per call. If input arrives faster than the server answers, it fills the next call in the
/// meantime.
const BATCH: usize = 8192;
/// Far longer than any id.
const MAX_LINE: usize = 256;

/// One argument: an id, or `-` for the ids on standard input.
#[derive(Clone, Debug)]
pub(crate) enum IdArg {
    Id(SessionId),
    Stdin,
}

impl FromStr for IdArg {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text == "-" { Ok(Self::Stdin) } else { text.parse().map(Self::Id) }
    }
}

/// Yields the ids in order, in batches.
pub(crate) struct Ids {
    args: vec::IntoIter<IdArg>,
    stdin: Option<mpsc::Receiver<Result<SessionId, CliError>>>,
    /// An error to return after the last batch, whose ids preceded it.
    error: Option<CliError>,
}

impl Ids {
    pub(crate) fn new(args: Vec<IdArg>) -> Self {
        Self { args: args.into_iter(), stdin: None, error: None }
    }

    /// Returns the next ids: at least one, and as many as are ready. Returns `None` at the end.
    ///
    /// Ids on standard input are returned as they are typed or piped: a batch is what has arrived since the last one.
    pub(crate) async fn next_batch(&mut self) -> Result<Option<Vec<SessionId>>, CliError> {
        let mut batch = Vec::new();
        while batch.is_empty() {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            if let Some(stdin) = &mut self.stdin {
                let mut lines = Vec::new();
                if stdin.recv_many(&mut lines, BATCH).await == 0 {
                    self.stdin = None;
                }
                for line in lines {
                    match line {
                        Ok(id) => batch.push(id),
                        Err(error) => self.error = Some(error),
                    }
                }
            } else {
                match self.args.next() {
                    Some(IdArg::Id(id)) => {
                        batch.push(id);
                        self.following_ids(&mut batch);
                    }
                    Some(IdArg::Stdin) => self.stdin = Some(read_stdin()?),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(batch))
    }

    fn following_ids(&mut self, batch: &mut Vec<SessionId>) {
        while let (true, Some(IdArg::Id(id))) = (batch.len() < BATCH, self.args.as_slice().first()) {
            batch.push(*id);
            self.args.next();
        }
    }
}

/// Reads standard input on a separate thread, because a read from a terminal cannot be cancelled.
fn read_stdin() -> Result<mpsc::Receiver<Result<SessionId, CliError>>, CliError> {
    let (sender, receiver) = mpsc::channel(BATCH);
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read_lines(io::stdin().lock(), |id| sender.blocking_send(id).is_ok()))
        .map_err(|error| {
            CliError::new(
                Exit::No,
                format!("cannot start a thread: {error}: check the resource limits of this process"),
            )
        })?;
    Ok(receiver)
}

/// Passes the ids in `input`, one per line, to `take`. Stops at the end, at the first error, or if `take` returns
/// false.
fn read_lines(mut input: impl BufRead, mut take: impl FnMut(Result<SessionId, CliError>) -> bool) {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        // The limit keeps input without line ends from filling the memory.
        match (&mut input).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                take(Err(CliError::new(
                    Exit::No,
                    format!("cannot read standard input: {error}: check where it is redirected from"),
                )));
                return;
            }
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        match text.parse() {
            Ok(id) => {
                if !take(Ok(id)) {
                    return;
                }
            }
            Err(error) => {
                take(Err(CliError::new(Exit::Usage, format!("standard input, line {number}: {error}"))));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<Result<i64, String>> {
        let mut ids = Vec::new();
        read_lines(input, |id| {
            ids.push(id.map(|id| id.0).map_err(|error| format!("{error:?}")));
            true
        });
        ids
    }

    #[test]
    fn lines_are_parsed_up_to_the_first_invalid_one() {
        assert_eq!(read(b"1\n\n -2\r\n0xff"), [Ok(1), Ok(-2), Ok(255)]);
        let ids = read(b"1\nx\n2\n");
        assert_eq!(ids.len(), 2);
        assert!(ids[1].as_ref().is_err_and(|error| error.contains("line 2")), "{ids:?}");
    }

    #[test]
    fn line_without_end_is_an_error() {
        let ids = read(&vec![b'1'; 1 << 20]);
        assert!(matches!(&ids[..], [Err(_)]), "{ids:?}");
    }

    #[tokio::test]
    async fn arguments_come_in_batches_and_in_order() {
        let args = (0..10_000).map(|id| IdArg::Id(SessionId(id))).collect();
        let mut ids = Ids::new(args);
        let mut all = Vec::new();
        while let Some(batch) = ids.next_batch().await.unwrap() {
            assert!(batch.len() <= BATCH);
            all.extend(batch.into_iter().map(|id| id.0));
        }
        assert!(all.into_iter().eq(0..10_000));
    }
}
