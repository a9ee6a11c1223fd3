//! The credentials of a client command, for the library's client and for the load generator's own connections.

use std::sync::Arc;

use http::{HeaderValue, header::InvalidHeaderValue};
use sessiond::client::{ClientBuilder, ClientError};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The certificates to trust and the client's credentials.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// Root certificates in PEM.
    pub(crate) ca: Option<Vec<u8>>,
    /// The client certificate and its private key, in PEM.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) token: Option<String>,
}

impl Credentials {
    /// Adds the certificates and credentials to the builder of a client.
    pub(crate) fn apply(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, ClientError> {
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

    /// Returns the header that sends the token.
    pub(crate) fn authorization(&self) -> Result<Option<HeaderValue>, InvalidHeaderValue> {
        self.token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose()
    }

    /// Returns the TLS configuration of a connection.
    pub(crate) fn tls(&self) -> Result<ClientConfig, BoxError> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate?)?;
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}
