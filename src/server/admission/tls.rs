//! TLS: from files to what connections are opened with.

use std::{path::PathBuf, sync::Arc};

use webpki::EndEntityCert;

use crate::server::reload::{ConfigFileError, NamedFile, Reloaded};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

/// The files, in PEM, that make a server speak TLS. They are read again when they change.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead from it to a root (`--tls-cert`).
    pub cert: PathBuf,
    /// The private key of the certificate (`--tls-key`).
    pub key: PathBuf,
    /// The roots that clients' certificates must come from (`--tls-client-ca`). Where given, a client without one is
    /// turned away.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads the files.
    pub(crate) fn load(self) -> Result<Reloaded<ServerConfig>, ConfigFileError> {
        let mut files =
            vec![NamedFile { flag: "tls-cert", path: self.cert }, NamedFile { flag: "tls-key", path: self.key }];
        files.extend(self.client_ca.map(|path| NamedFile { flag: "tls-client-ca", path }));
        Reloaded::load(files, server_config)
    }
}

fn server_config(files: &[NamedFile], contents: &[Vec<u8>]) -> Result<ServerConfig, ConfigFileError> {
    let wrong = |index: usize, reason: String| files[index].wrong(reason);
    let provider = Arc::new(ring::default_provider());
    let certificates = certificates(&contents[0]).map_err(|reason| wrong(0, reason))?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|error| {
        wrong(1, format!("there is no private key in it ({error}): write one in PEM, not encrypted"))
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
        .map_err(|error| wrong(1, format!("{error}: it must be the key of the certificate in --tls-cert")))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Connections live long. One that resumed a session would not show its certificate again, though it has expired.
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

/// The subject alternative names of a verified certificate: its URIs, then its DNS names.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    // Fails for none that was verified.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_uri_names().chain(certificate.valid_dns_names()).map(str::to_owned).collect()
}
