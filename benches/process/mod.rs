//! Server processes, and what a process or a thread has used, as several benchmarks measure it.

// Each benchmark uses some of these.
#![allow(dead_code)]

pub(crate) mod server;

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Returns the processor time of this thread.
pub(crate) fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Returns the resident memory, in bytes, of the process with this id, or of this one (`self`).
pub(crate) fn resident(process: impl std::fmt::Display) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
