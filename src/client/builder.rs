//! How a client connects.

use std::time::Duration;

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
/// Keeps every deadline far from the end of the clock.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that answers no ping for 10 s is dead. Pings also keep idle connections in the tables of the NATs and
/// load balancers between.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a [`Client`]; made by [`Client::builder`].
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
                // Without these the address is only found wanting at the first call, and as a server out of reach.
                if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
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

    /// The roots, in PEM, that the server's certificate must come from; by default those of the system. Only for `https`.
    pub fn tls_ca(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca = Some(Certificate::from_pem(pem));
        self
    }

    /// The certificate to show to the server with those that lead from it to a root, and its private key, in PEM. Only for
    /// `https`.
    pub fn tls_identity(mut self, cert_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(cert_pem, key_pem));
        self
    }

    /// The token to send with every call, as `sessiond token new` wrote it.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidToken`] when it cannot be sent.
    pub fn token(mut self, token: &str) -> Result<Self, ClientError> {
        self.authorization = Authorization::bearer(token)?;
        Ok(self)
    }

    /// How long a call may take, connecting included, and how long a watch may take to open its stream. 10 s by
    /// default, a day at most. A batch that is split has this long for each of its calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// How long connecting may take; 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// The client, which connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidTls`] when the certificates or the key cannot be used, or are given for an `http` address.
    ///
    /// # Panics
    ///
    /// When called outside of a Tokio runtime.
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
                return Err(invalid_tls("the address is without TLS: write https://HOST:PORT"));
            }
            return Ok(None);
        }
        // A handshake that hangs is part of connecting, which has an end.
        let tls = ClientTlsConfig::new().timeout(self.connect_timeout);
        let tls = match &self.ca {
            None => tls.with_native_roots(),
            Some(ca) => {
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca.as_ref()).collect();
                if certificates.is_ok_and(|certificates| certificates.is_empty()) {
                    return Err(invalid_tls("there is no certificate among the roots: write them in PEM"));
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
    fn addresses_are_http_or_https_with_a_host() {
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
        for bad in ["", "127.0.0.1:50051", "localhost", "https://", "redis://h:1", "http://", "unix:", "unix://"] {
            let error = ClientBuilder::new(bad).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
            assert!(!error.is_retryable());
        }
    }
}
