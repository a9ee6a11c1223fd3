//! The flags for the server's address and the client's credentials.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use sessiond::client::{Client, ClientError};

use super::{
    credentials::Credentials,
    exit::{CliError, Exit},
};

/// The server's address and the credentials, the same for every client command.
#[derive(Debug, Args)]
pub(crate) struct AddrArgs {
    /// The server's address: http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH for a Unix socket.
    #[arg(long, env = "SESSIOND_ADDR", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    #[arg(value_parser = parse_addr, hide_env_values = true)]
    addr: String,

    /// A PEM file with the root certificates to trust [default: the system's].
    #[arg(long, env = "SESSIOND_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// A PEM file with the client certificate to present to the server.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_CERT", value_name = "FILE", requires = "tls_client_key")]
    tls_client_cert: Option<PathBuf>,

    /// A PEM file with the private key of the client certificate.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_KEY", value_name = "FILE", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,

    /// The token to send to the server. Other users of this machine can see it on the command line; prefer the
    /// environment variable or --token-file.
    #[arg(long, env = "SESSIOND_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A file with the token to send to the server.
    #[arg(long, env = "SESSIOND_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

impl AddrArgs {
    /// Builds a client whose calls time out after `timeout`.
    pub(crate) fn client(&self, timeout: Duration) -> Result<Client, CliError> {
        let credentials = self.credentials()?;
        let builder = Client::builder(&self.addr).and_then(|builder| credentials.apply(builder));
        // A watch that runs for long must follow the file.
        let builder = match &self.token_file {
            Some(file) => builder.and_then(|builder| builder.token_file(file)),
            None => builder,
        };
        let builder = builder.map_err(|error| self.error(&error))?;
        builder.timeout(timeout).connect_timeout(timeout).connect_lazy().map_err(|error| self.error(&error))
    }

    /// Reads the credentials from their files and flags.
    pub(crate) fn credentials(&self) -> Result<Credentials, CliError> {
        let read_pem = |flag, path: &Option<PathBuf>| path.as_deref().map(|path| read(flag, path)).transpose();
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(String::from_utf8_lossy(&read("token-file", path)?).trim().to_owned()),
            (None, None) => None,
        };
        let cert = read_pem("tls-client-cert", &self.tls_client_cert)?;
        let key = read_pem("tls-client-key", &self.tls_client_key)?;
        Ok(Credentials { ca: read_pem("tls-ca", &self.tls_ca)?, identity: cert.zip(key), token })
    }

    /// Describes a failed call to the server.
    pub(crate) fn error(&self, error: &ClientError) -> CliError {
        CliError::client(&self.addr, error)
    }

    /// Returns the address, for messages.
    pub(crate) fn as_str(&self) -> &str {
        &self.addr
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path)
        .map_err(|error| CliError::new(Exit::Usage, format!("cannot read {} ({error}): see --{flag}", path.display())))
}

/// Parses an address. The errors do not repeat it, because it may contain a password.
fn parse_addr(text: &str) -> Result<String, &'static str> {
    if text.contains('@') && !text.starts_with("unix:") {
        return Err("an address cannot contain a login: pass a token with --token-file");
    }
    let is_address = Client::builder(text).is_ok();
    is_address.then(|| text.to_owned()).ok_or("use http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH")
}

/// Parses a duration such as `500ms` or `1m 30s`, longer than zero.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("the duration must not be 0: use a duration such as 500ms or 10s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}: use a duration such as 500ms or 10s")),
    }
}
