//! Reads configuration files, and reads them again when they change.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// How often the files are checked. Their contents are compared rather than their modification times, because programs
/// that replace files by renaming or by symbolic links treat these times differently.
const INTERVAL: Duration = Duration::from_secs(2);

/// The maximum size of a file, in bytes: room for about ten thousand tokens, or hundreds of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("cannot read {file} {} ({cause})", .path.display())]
    Read {
        /// What the file is for.
        file: ConfigFile,
        /// The path of the file.
        path: PathBuf,
        /// What the operating system reported.
        cause: io::Error,
    },
    /// The file's contents are invalid.
    #[error("cannot use {file} {}: {reason}", .path.display())]
    Wrong {
        /// What the file is for.
        file: ConfigFile,
        /// The path of the file.
        path: PathBuf,
        /// What is wrong, and what is expected.
        reason: String,
    },
}

impl ConfigFileError {
    /// Returns the kind of the file.
    #[must_use]
    pub fn file(&self) -> ConfigFile {
        match self {
            Self::Read { file, .. } | Self::Wrong { file, .. } => *file,
        }
    }
}

/// The kind of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigFile {
    /// The server's TLS certificate; see [`TlsFiles::cert`](super::TlsFiles::cert).
    Certificate,
    /// The key of that certificate; see [`TlsFiles::key`](super::TlsFiles::key).
    PrivateKey,
    /// The root certificates of clients; see [`TlsFiles::client_ca`](super::TlsFiles::client_ca).
    ClientCa,
    /// The file with the access list; see [`ServerConfig::access_file`](super::ServerConfig::access_file).
    AccessList,
}

impl fmt::Display for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Certificate => "the certificate",
            Self::PrivateKey => "the private key",
            Self::ClientCa => "the client CA",
            Self::AccessList => "the access file",
        })
    }
}

/// A configuration file and its path.
#[derive(Clone, Debug)]
pub(crate) struct NamedFile {
    pub(super) file: ConfigFile,
    pub(super) path: PathBuf,
}

impl NamedFile {
    pub(super) fn wrong(&self, reason: String) -> ConfigFileError {
        ConfigFileError::Wrong { file: self.file, path: self.path.clone(), reason }
    }

    fn read(&self) -> Result<Vec<u8>, ConfigFileError> {
        let contents = read(&self.path);
        let contents =
            contents.map_err(|cause| ConfigFileError::Read { file: self.file, path: self.path.clone(), cause })?;
        if contents.len() as u64 > MAX_BYTES {
            return Err(self.wrong(format!("it is larger than {MAX_BYTES} bytes")));
        }
        Ok(contents)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut contents)?;
    Ok(contents)
}

type Parse<T> = fn(&[NamedFile], &[Vec<u8>]) -> Result<T, ConfigFileError>;

/// A value that is parsed from files, and parsed again when they change.
pub(crate) struct Reloaded<T> {
    files: Vec<NamedFile>,
    parse: Parse<T>,
    contents: Vec<Vec<u8>>,
    value: watch::Sender<Arc<T>>,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloaded").field(&self.files).finish()
    }
}

impl<T> Reloaded<T> {
    /// Reads and parses the files for the first time.
    pub(super) fn load(files: Vec<NamedFile>, parse: Parse<T>) -> Result<Self, ConfigFileError> {
        let contents = read_all(&files)?;
        let (value, _) = watch::channel(Arc::new(parse(&files, &contents)?));
        Ok(Self { files, parse, contents, value })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.value.subscribe()
    }

    /// Checks the files periodically, and replaces the value when they have changed. An error leaves the value as it
    /// is, and is logged once.
    pub(super) async fn follow(mut self) {
        let mut last_error = String::new();
        loop {
            sleep(INTERVAL).await;
            let files = self.files.clone();
            let Ok(contents) = spawn_blocking(move || read_all(&files)).await else { continue };
            let error = match contents {
                Ok(contents) if contents == self.contents => continue,
                Ok(contents) => {
                    let value = (self.parse)(&self.files, &contents);
                    self.contents = contents;
                    match value {
                        Ok(value) => {
                            self.value.send_replace(Arc::new(value));
                            let files = self.files.iter().map(|file| file.path.display().to_string());
                            tracing::info!(
                                files = files.collect::<Vec<_>>().join(", "),
                                "configuration files have changed and were read again"
                            );
                            last_error.clear();
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let error = error.to_string();
            if error != last_error {
                tracing::error!(error, "cannot reload configuration files: the previous contents stay in force");
                last_error = error;
            }
        }
    }
}

fn read_all(files: &[NamedFile]) -> Result<Vec<Vec<u8>>, ConfigFileError> {
    files.iter().map(NamedFile::read).collect()
}
