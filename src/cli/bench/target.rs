//! The server that the loader connects to, and its credentials.

use std::{fmt, path::PathBuf, sync::Arc};

use http::{
    HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::super::{
    credentials::Credentials,
    exit::{CliError, Exit},
};

const SERVICE: &str = "sessiond.v1.SessionService";

/// The server to measure.
#[derive(Clone)]
pub(crate) struct Target {
    addr: String,
    /// The scheme and authority of requests.
    origin: String,
    pub(super) socket: Socket,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    authorization: Option<HeaderValue>,
}

/// The socket to connect to.
#[derive(Clone)]
pub(super) enum Socket {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Target {
    /// Parses an address of the form `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
    pub(crate) fn new(addr: &str, credentials: &Credentials) -> Result<Self, CliError> {
        let wrong = |reason: String| CliError::new(Exit::Usage, reason);
        let authorization = credentials.authorization().map_err(|error| wrong(error.to_string()))?;
        if let Some(path) = addr.strip_prefix("unix:") {
            let socket = Socket::Unix(path.strip_prefix("//").unwrap_or(path).into());
            return Ok(Self {
                addr: addr.to_owned(),
                origin: "http://localhost".to_owned(),
                socket,
                tls: None,
                authorization,
            });
        }
        let uri: Uri = addr.parse().map_err(|_| wrong(format!("{addr:?} is not a server address")))?;
        // IPv6 addresses are in brackets only in URLs.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_tls = uri.scheme_str() == Some("https");
        let tls = if is_tls {
            let name = ServerName::try_from(host.clone()).map_err(|error| wrong(error.to_string()))?;
            let config = credentials.tls().map_err(|error| wrong(format!("invalid TLS settings: {error}")))?;
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addr = addr.trim_end_matches('/').to_owned();
        Ok(Self { origin: addr.clone(), addr, socket: Socket::Tcp(host, port), tls, authorization })
    }

    /// Returns the address, for messages.
    pub(super) fn as_str(&self) -> &str {
        &self.addr
    }

    /// Returns the head of every request for `method`.
    pub(super) fn request(&self, method: &str) -> Result<Request<()>, http::Error> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/{SERVICE}/{method}", self.origin))
            .header(TE, "trailers")
            .header(CONTENT_TYPE, "application/grpc");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.addr).finish()
    }
}
