//! The flags of commands that make calls and print a line for each answer.

use std::time::Duration;

use clap::Args;
use sessiond::client::{Client, ClientError};

use super::{
    connect::{AddrArgs, parse_duration},
    exit::CliError,
    format::{Format, JsonLine},
};

/// How to call the server, and how to print its answers.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The format of the printed lines.
    #[arg(long, env = "SESSIOND_FORMAT", value_enum, default_value = "text")]
    pub(super) format: Format,

    #[command(flatten)]
    addr: AddrArgs,

    /// How long each call may take, including connecting.
    #[arg(long, env = "SESSIOND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

impl CallArgs {
    /// Returns a client of the server.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        self.addr.client(self.timeout)
    }

    /// Describes a failed call.
    pub(super) fn error(&self, error: &ClientError) -> CliError {
        self.addr.error(error)
    }

    /// Returns a line in the chosen format.
    pub(super) fn line(
        &self,
        text: impl FnOnce() -> String,
        json: impl FnOnce(JsonLine<'_>) -> JsonLine<'_>,
    ) -> String {
        match self.format {
            Format::Text => text(),
            Format::Json => {
                let mut out = String::new();
                json(JsonLine::begin(&mut out)).end();
                out
            }
        }
    }

    /// Returns the server's address, for messages.
    pub(super) fn addr(&self) -> &str {
        self.addr.as_str()
    }
}
