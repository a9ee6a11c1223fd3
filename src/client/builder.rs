//! The builder of a client, and how the client connects.

use std::{path::PathBuf, time::Duration};

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tonic::{
    codegen::http::Uri,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    Client, ClientError,
    error::root_cause,
    transport::{Authorization, Target},
};

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Keeps every deadline well below the largest `Instant`.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that does not answer a ping for 5 s is dead. The pings also keep NATs and load balancers on the way
/// from dropping an idle connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Configures and builds a [`Client`]. Returned by [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    endpoint: Endpoint,
    is_tls: bool,
    ca: Option<Certificate>,
    identity: Option<Identity>,
    authorization: Authorization,
    connect_timeout: Duration,
    timeout: Duration,
}

impl ClientBuilder {
    pub(super) fn new(addr: &str) -> Result<Self, ClientError> {
        let invalid = || ClientError::InvalidAddress { addr: addr.to_owned() };
        let is_tls = match addr.strip_prefix("unix:") {
            Some(path) if !matches!(path, "" | "//") => false,
            Some(_) => return Err(invalid()),
            None => {
                let uri: Uri = addr.parse().map_err(|_| invalid())?;
                // Without this check, a bad address would only show at the first call, as an unreachable server.
                let has_host = uri.host().is_some_and(|host| !host.is_empty());
                let has_path = uri.path().len() > 1 || uri.query().is_some();
                if !matches!(uri.scheme_str(), Some("http" | "https")) || !has_host || has_path {
                    return Err(invalid());
                }
                uri.scheme_str() == Some("https")
            }
        };
        Ok(Self {
            endpoint: Endpoint::from_shared(addr.to_owned()).map_err(|_| invalid())?,
            is_tls,
            ca: None,
            identity: None,
            authorization: Authorization::default(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
        })
    }

    /// Sets the root certificates, in PEM, that the server's certificate must chain to. The default is the system's
    /// roots.
    ///
    /// Only valid with an `https` address.
    pub fn tls_ca(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca = Some(Certificate::from_pem(pem));
        self
    }

    /// Sets the client certificate to present to the server, followed by its intermediates, and its private key, all in
    /// PEM.
    ///
    /// Only valid with an `https` address.
    pub fn tls_identity(mut self, cert_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(cert_pem, key_pem));
        self
    }

    /// Sets the token to send with every call, exactly as `sessiond token new` printed it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::InvalidToken`] if the token is empty or contains spaces or characters that are not
    /// printable ASCII.
    pub fn token(mut self, token: &str) -> Result<Self, ClientError> {
        self.authorization = Authorization::bearer(token)?;
        Ok(self)
    }

    /// Sets the file that holds the token to send with every call. Spaces and line ends around the token are ignored.
    ///
    /// The file is read again when it changes, so a new token is used by the next call and the next stream. If the file
    /// then cannot be read or holds no token, the last one is used.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::InvalidTokenFile`] if the file cannot be read, and [`ClientError::InvalidToken`] if it
    /// holds no token.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        self.authorization = Authorization::file(path.into())?;
        Ok(self)
    }

    /// Sets how long a call may take, including connecting, and how long a watch may take to open its stream.
    ///
    /// The default is 10 s, the maximum 24 h. If a batch is split into several calls, each call gets the whole timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long connecting may take, including the TLS handshake. The default is 5 s, the maximum 24 h.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Builds the client. It connects on first use.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::InvalidTls`] if the certificates or the key cannot be used, or are set for an address
    /// without TLS.
    ///
    /// # Panics
    ///
    /// Panics if called outside a Tokio runtime.
    pub fn connect_lazy(self) -> Result<Client, ClientError> {
        let endpoint = self
            .endpoint
            .clone()
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = match self.tls()? {
            Some(tls) => endpoint.tls_config(tls).map_err(|error| invalid_tls(root_cause(&error)))?,
            None => endpoint,
        };
        Ok(Client::new(Target { endpoint, authorization: self.authorization }, self.timeout))
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, ClientError> {
        if !self.is_tls {
            if self.ca.is_some() || self.identity.is_some() {
                return Err(invalid_tls("the address does not use TLS: use https://HOST:PORT"));
            }
            return Ok(None);
        }
        // A handshake that hangs must end with the connect timeout too.
        let tls = ClientTlsConfig::new().timeout(self.connect_timeout);
        let tls = match &self.ca {
            None => tls.with_native_roots(),
            Some(ca) => {
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca.as_ref()).collect();
                if certificates.is_ok_and(|certificates| certificates.is_empty()) {
                    return Err(invalid_tls("the root certificates contain no certificate: they must be in PEM"));
                }
                tls.ca_certificate(ca.clone())
            }
        };
        Ok(Some(match &self.identity {
            None => tls,
            Some(identity) => tls.identity(identity.clone()),
        }))
    }
}

fn invalid_tls(reason: impl ToString) -> ClientError {
    ClientError::InvalidTls { reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_validated() {
        for good in [
            "unix:/run/s",
            "unix:///run/s",
            "http://127.0.0.1:50051",
            "http://[::1]:50051",
            "http://sessiond.local",
            "https://sessiond.local",
        ] {
            assert!(ClientBuilder::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:50051",
            "localhost",
            "https://",
            "redis://h:1",
            "http://",
            "http://host:1/path",
            "unix:",
            "unix://",
        ] {
            let error = ClientBuilder::new(bad).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
            assert!(!error.is_retryable());
        }
    }
}
