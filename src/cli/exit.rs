//! Exit codes and error messages of the program.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    process::ExitCode,
};

use sessiond::client::ClientError;

/// An exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    No = 1,
    Usage = 2,
    Server = 3,
    Listen = 4,
    Storage = 5,
    Failed = 6,
}

const MEANINGS: [(Exit, &str); 7] = [
    (Exit::Done, "success"),
    (
        Exit::No,
        "the answer is no (a session is missing, a lease is gone, the server is not serving), or any other failure",
    ),
    (Exit::Usage, "the command line or the configuration is wrong"),
    (Exit::Server, "the server cannot be reached, or refused the call"),
    (Exit::Listen, "the server cannot listen on a port"),
    (Exit::Storage, "the storage cannot be opened, and waiting cannot help or took too long"),
    (Exit::Failed, "a task that the server needs has panicked, and the server has drained"),
];

/// Lists the exit codes for `--help`.
pub(crate) fn help() -> String {
    let mut help = String::from("Exit codes:");
    for (exit, meaning) in MEANINGS {
        let code = exit as u8;
        // Writing to a `String` cannot fail.
        let _ = write!(help, "\n  {code}  {meaning}");
    }
    help
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The error that ended a command. The message says what is wrong, and then what to do.
#[derive(Debug)]
pub(crate) struct CliError {
    exit: Exit,
    message: String,
}

impl CliError {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// Describes a failed call to the server at `addr`.
    pub(crate) fn client(addr: &str, error: &ClientError) -> Self {
        match error {
            ClientError::InvalidAddress { .. } | ClientError::InvalidTls { .. } | ClientError::InvalidToken => {
                Self::new(Exit::Usage, error)
            }
            // The call itself has succeeded: this is its answer.
            ClientError::Status(status) if error.is_lease_gone() => Self::new(Exit::No, status.message()),
            // The server's messages already say what to do.
            ClientError::Status(_) => Self::new(Exit::Server, error),
            ClientError::Timeout { .. } => Self::new(
                Exit::Server,
                format!("{error}: check that {addr} is the right address (--addr), or allow more time (--timeout)"),
            ),
            _ => Self::new(
                Exit::Server,
                format!("{error}: check that a sessiond runs at {addr}, or give another address with --addr"),
            ),
        }
    }

    /// Prints the error and returns its exit code.
    pub(crate) fn report(self) -> ExitCode {
        print_status(&self.message);
        self.exit.into()
    }

    /// Appends a note to the message.
    pub(crate) fn with_note(self, note: &str) -> Self {
        Self { message: format!("{}; {note}", self.message), ..self }
    }

    /// Replaces the exit code.
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// Prints one line to standard error.
pub(crate) fn print_status(message: &str) {
    // Text from a server or a file must neither break the line nor send control sequences to the terminal.
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // If standard error is closed, there is nowhere to report that.
    let _ = writeln!(io::stderr(), "sessiond: {line}");
}
