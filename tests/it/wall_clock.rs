//! Sets the wall clock of a process while it runs, with libfaketime.

use std::{env, fs, path::Path};

use tempfile::TempDir;

use crate::{certificates::text, installed::is_missing};

/// A wall clock that the test can set. The monotonic clock is left alone, because it cannot be set in reality either.
pub(crate) struct WallClock {
    folder: TempDir,
    library: String,
}

impl WallClock {
    /// Makes a clock that shows the true time. Returns `None` if libfaketime is not installed.
    pub(crate) fn new() -> Option<Self> {
        // Debian's path of the variant for multi-threaded programs.
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", env::consts::ARCH);
        if is_missing("faketime", Path::new(&library).exists()) {
            return None;
        }
        let clock = Self { folder: tempfile::tempdir().unwrap(), library };
        clock.set(0);
        Some(clock)
    }

    /// Sets the clock to this many seconds after the true time.
    pub(crate) fn set(&self, seconds: i64) {
        // Replace the file atomically, because the process may read it at any time.
        let new = self.folder.path().join("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(new, self.folder.path().join("clock")).unwrap();
    }

    /// Returns the environment variables that make a process use this clock.
    pub(crate) fn environment(&self) -> [(String, String); 4] {
        let file = self.folder.path().join("clock");
        [
            ("LD_PRELOAD", self.library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", text(&file)),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    }
}
