//! Loads the TLS configuration from certificate files.

use std::{path::PathBuf, sync::Arc};

use webpki::EndEntityCert;

use crate::server::reload::{ConfigFile, ConfigFileError, NamedFile, Reloaded};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

/// The certificate files of a server that speaks TLS, in PEM. They are read again when they change.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The server's certificate, followed by its intermediate certificates.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The root certificates for client certificates. If set, every client must present a
    /// certificate that was issued under one of them.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Names the files of a server that does not ask for client certificates.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { cert: cert.into(), key: key.into(), client_ca: None }
    }

    setters!(into client_ca: Option<PathBuf>);

    /// Reads the files.
    pub(crate) fn load(self) -> Result<Reloaded<ServerConfig>, ConfigFileError> {
        let mut files = vec![
            NamedFile { file: ConfigFile::Certificate, path: self.cert },
            NamedFile { file: ConfigFile::PrivateKey, path: self.key },
        ];
        files.extend(self.client_ca.map(|path| NamedFile { file: ConfigFile::ClientCa, path }));
        Reloaded::load(files, server_config)
    }
}

fn server_config(files: &[NamedFile], contents: &[Vec<u8>]) -> Result<ServerConfig, ConfigFileError> {
    let wrong = |index: usize, reason: String| files[index].wrong(reason);
    let provider = Arc::new(ring::default_provider());
    let certificates = certificates(&contents[0]).map_err(|reason| wrong(0, reason))?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|error| {
        wrong(1, format!("there is no private key in it ({error}): write an unencrypted one in PEM"))
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(0, error.to_string()))?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(contents) => {
            let verifier = client_verifier(contents, provider).map_err(|reason| wrong(2, reason))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .map_err(|error| wrong(1, format!("{error}: it must be the private key of the certificate")))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No session resumption: a client that resumes does not present its certificate again, which may have expired.
    // Connections live long, so resumption would save little.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("there is no certificate in it: write one in PEM".to_owned()),
        Err(error) => Err(format!("{error}: write certificates in PEM")),
    }
}

fn client_verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|error| error.to_string())
}

/// Returns the subject alternative names of a verified certificate: its URIs, then its DNS names.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    // This never fails for a certificate that was verified.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_uri_names().chain(certificate.valid_dns_names()).map(str::to_owned).collect()
}
