//! Configuration that is read from files, and again when they change.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// How often the files are looked at. Their contents are compared, and not their times: those who replace files by renaming
/// or by symbolic links do not agree on what becomes of times.
const INTERVAL: Duration = Duration::from_secs(2);

/// The longest file that is read, in bytes: some ten thousand tokens, or hundreds of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("cannot read {} ({source}): see --{flag}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("cannot use {} (--{flag}): {reason}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// A file, and the flag that names it.
#[derive(Clone, Debug)]
pub(crate) struct NamedFile {
    pub(super) flag: &'static str,
    pub(super) path: PathBuf,
}

impl NamedFile {
    pub(super) fn wrong(&self, reason: String) -> ConfigFileError {
        ConfigFileError::Wrong { path: self.path.clone(), flag: self.flag, reason }
    }

    fn read(&self) -> Result<Vec<u8>, ConfigFileError> {
        let contents = read(&self.path);
        let contents =
            contents.map_err(|source| ConfigFileError::Read { path: self.path.clone(), flag: self.flag, source })?;
        if contents.len() as u64 > MAX_BYTES {
            return Err(self.wrong(format!("it has more than {MAX_BYTES} bytes")));
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

/// A value that is made of the contents of files.
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
    /// Reads the files for the first time.
    pub(super) fn load(files: Vec<NamedFile>, parse: Parse<T>) -> Result<Self, ConfigFileError> {
        let contents = read_all(&files)?;
        let (value, _) = watch::channel(Arc::new(parse(&files, &contents)?));
        Ok(Self { files, parse, contents, value })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.value.subscribe()
    }

    /// Reads the files again and again. What cannot be used changes nothing and is logged, once.
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
                                "read again, as it has changed"
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
                tracing::error!(error, "what was read before stays in force");
                last_error = error;
            }
        }
    }
}

fn read_all(files: &[NamedFile]) -> Result<Vec<Vec<u8>>, ConfigFileError> {
    files.iter().map(NamedFile::read).collect()
}
