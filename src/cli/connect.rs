//! The flags by which a client command finds its server, and shows who it is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use sessiond::client::{Client, ClientBuilder, ClientError};

use super::exit::{CliError, Exit};

/// The server's address and the way there, the same for every command.
#[derive(Debug, Args)]
pub(crate) struct AddrArgs {
    /// The address of the server: http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH for a Unix socket.
    #[arg(long, env = "SESSIOND_ADDR", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    #[arg(value_parser = parse_addr, hide_env_values = true)]
    addr: String,

    /// The file of the roots that the server's certificate must come from, in PEM [default: the system's].
    #[arg(long, env = "SESSIOND_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The file of the certificate to show to the server, in PEM.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_CERT", value_name = "FILE", requires = "tls_client_key")]
    tls_client_cert: Option<PathBuf>,

    /// The file of the private key of that certificate, in PEM.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_KEY", value_name = "FILE", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,

    /// The token to show to the server. Other users of this machine may see it on the command line: the environment
    /// variable and --token-file keep it to you.
    #[arg(long, env = "SESSIOND_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// The file that holds the token to show to the server.
    #[arg(long, env = "SESSIOND_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

impl AddrArgs {
    /// A client that gives up on a call after `timeout`.
    pub(crate) fn client(&self, timeout: Duration) -> Result<Client, CliError> {
        let credentials = self.credentials()?;
        let builder = Client::builder(&self.addr).and_then(|builder| credentials.apply(builder));
        let builder = builder.map_err(|error| self.error(&error))?;
        builder.timeout(timeout).connect_timeout(timeout).connect_lazy().map_err(|error| self.error(&error))
    }

    /// What the files hold, and the token.
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

    /// A call to the server failed.
    pub(crate) fn error(&self, error: &ClientError) -> CliError {
        CliError::client(&self.addr, error)
    }

    /// The address, for messages.
    pub(crate) fn as_str(&self) -> &str {
        &self.addr
    }
}

/// Whom to trust, and who one is.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// Roots, in PEM.
    pub(crate) ca: Option<Vec<u8>>,
    /// A certificate and its key, in PEM.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) token: Option<String>,
}

impl Credentials {
    fn apply(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, ClientError> {
        if let Some(ca) = &self.ca {
            builder = builder.tls_ca(ca);
        }
        if let Some((cert, key)) = &self.identity {
            builder = builder.tls_identity(cert, key);
        }
        match &self.token {
            Some(token) => builder.token(token),
            None => Ok(builder),
        }
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path)
        .map_err(|error| CliError::new(Exit::Usage, format!("cannot read {} ({error}): see --{flag}", path.display())))
}

/// The errors do not repeat the text, which may hold a password.
fn parse_addr(text: &str) -> Result<String, &'static str> {
    if text.contains('@') && !text.starts_with("unix:") {
        return Err("an address has no login: show a token with --token-file");
    }
    let is_address = Client::builder(text).is_ok();
    is_address.then(|| text.to_owned()).ok_or("write http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH")
}

/// Reads a duration such as `500ms` or `1m 30s`, longer than nothing.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("no time at all: write a duration such as 500ms or 10s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}: write a duration such as 500ms or 10s")),
    }
}
