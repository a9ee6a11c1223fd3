//! The flags by which a client command finds its server.

use std::time::Duration;

use clap::Args;
use sessiond::client::{Client, ClientError};

use super::exit::CliError;

/// The server's address, the same for every command.
#[derive(Debug, Args)]
pub(crate) struct AddrArgs {
    /// The address of the server: http://HOST:PORT.
    #[arg(long, env = "SESSIOND_ADDR", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    #[arg(value_parser = parse_addr)]
    addr: String,
}

impl AddrArgs {
    /// A client that gives up on a call after `timeout`.
    pub(crate) fn client(&self, timeout: Duration) -> Result<Client, CliError> {
        let builder = Client::builder(&self.addr).map_err(|error| self.error(&error))?;
        Ok(builder.timeout(timeout).connect_timeout(timeout).connect_lazy())
    }

    /// A call to the server failed.
    pub(crate) fn error(&self, error: &ClientError) -> CliError {
        CliError::client(&self.addr, error)
    }

    /// The address, for messages.
    pub(crate) fn as_str(&self) -> &str {
        &self.addr
    }
}

fn parse_addr(text: &str) -> Result<String, ClientError> {
    Client::builder(text).map(|_| text.to_owned())
}

/// Reads a duration such as `500ms` or `1m 30s`, longer than nothing.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("no time at all: write a duration such as 500ms or 10s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}: write a duration such as 500ms or 10s")),
    }
}
