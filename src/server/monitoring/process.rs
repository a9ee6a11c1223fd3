//! What the kernel knows of this process, under the names that Prometheus' client libraries use.

use std::fs;

/// Figures of this process, as far as `/proc` tells them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    /// In Unix time.
    pub(super) start_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

/// USER_HZ, in which `/proc` tells times: 100 on every Linux that matters.
const TICKS_A_SECOND: f64 = 100.0;

impl Process {
    pub(crate) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name, in parentheses, may have spaces; the fields after it count from 3.
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        Self {
            cpu_seconds: (field(14) + field(15)) as f64 / TICKS_A_SECOND,
            start_seconds: boot_seconds().unwrap_or_default() as f64 + field(22) as f64 / TICKS_A_SECOND,
            resident_bytes: resident_bytes().unwrap_or_default(),
            virtual_bytes: field(23),
            open_fds: open_fds().unwrap_or_default(),
            max_fds: max_fds().unwrap_or_default(),
        }
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

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// When the machine started, in Unix time.
fn boot_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
