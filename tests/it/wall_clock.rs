//! The wall clock of a process that a test starts, set while the process runs. libfaketime lies between the two.

use std::{env, fs, path::Path};

use tempfile::TempDir;

use crate::{certificates::text, installed::is_missing};

/// A wall clock that the test sets. The monotonic clock stays as it is: nobody can set that one.
pub(crate) struct WallClock {
    folder: TempDir,
    library: String,
}

impl WallClock {
    /// A clock that shows the true time so far. None where libfaketime is not installed.
    pub(crate) fn new() -> Option<Self> {
        // Where Debian has it, for programs with threads.
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", env::consts::ARCH);
        if is_missing("faketime", Path::new(&library).exists()) {
            return None;
        }
        let clock = Self { folder: tempfile::tempdir().unwrap(), library };
        clock.set(0);
        Some(clock)
    }

    /// A clock that is slower than the true one by this factor.
    pub(crate) fn slow(factor: u32) -> Option<Self> {
        let clock = Self::new()?;
        clock.write(&format!("+0 x{}\n", 1.0 / f64::from(factor)));
        Some(clock)
    }

    /// Sets it to so many seconds after the true time.
    pub(crate) fn set(&self, seconds: i64) {
        self.write(&format!("{seconds:+}\n"));
    }

    /// Replaces the whole file at once, because the process may read it at any time.
    fn write(&self, offset: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, self.folder.path().join("clock")).unwrap();
    }

    /// The variables that give a process this clock.
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
