//! What the kernel knows of this process, under the names that Prometheus' client libraries use.

use std::fs;

/// Figures of this process, as far as `/proc` tells them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) open_fds: u64,
}

impl Process {
    pub(super) fn read() -> Self {
        Self { resident_bytes: resident_bytes().unwrap_or_default(), open_fds: open_fds().unwrap_or_default() }
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn open_fds() -> Option<u64> {
    // One of them is the directory that is read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64)
}
