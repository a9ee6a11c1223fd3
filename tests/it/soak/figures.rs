//! Measures the resources of an idle server, and counts what happened to it.

use std::{fs, path::Path, time::Duration};

use super::{observer::Observer, operator::Operator};
use crate::{program::Program, retry::Tally};

/// The allowed growth of resident memory since the first round. By then, everything was used once and the log is full.
const MORE_RESIDENT: u64 = 32 << 20;
/// The allowed growth of descriptors. A round may end while a scrape's connection is closing or a thread is exiting.
const MORE_FDS: u64 = 8;
const MORE_THREADS: u64 = 8;
const MORE_FILE: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Figures {
    resident: u64,
    open_fds: u64,
    threads: u64,
    file: u64,
}

impl Figures {
    /// Waits until all clients have left and all leases have ended, then measures. `file` is the storage's file, if
    /// any.
    pub(crate) async fn at_rest(program: &Program, file: Option<&Path>) -> Self {
        for name in ["sessiond_observers", "sessiond_connections", "sessiond_leases"] {
            program.metric_comes_to(name, 0).await;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).expect("Linux reports threads");
        Self {
            resident: program.metric("process_resident_memory_bytes").await,
            open_fds: program.metric("process_open_fds").await,
            threads: threads.trim().parse().unwrap(),
            file: file.map_or(0, |file| fs::metadata(file).unwrap().len()),
        }
    }
}

/// Asserts that the last figures have not grown too much since the first round, which is the warm-up.
pub(crate) fn are_bounded(figures: &[Figures]) {
    let (warm, last) = (&figures[1], figures.last().expect("there are figures of the first round"));
    let is_bounded = last.resident <= warm.resident + MORE_RESIDENT
        && last.open_fds <= warm.open_fds + MORE_FDS
        && last.threads <= warm.threads + MORE_THREADS
        && last.file <= warm.file * 2 + MORE_FILE;
    assert!(is_bounded, "the server's resources grow: {figures:#?}");
}

/// Totals over all rounds.
#[derive(Debug, Default)]
pub(crate) struct Count {
    tally: Tally,
    peers: u64,
    events: u64,
    resumed: u64,
    resets: u64,
}

impl Count {
    pub(crate) fn add(&mut self, tallies: impl Iterator<Item = Tally>, peers: Vec<u64>) {
        tallies.for_each(|tally| self.tally += tally);
        self.peers += peers.into_iter().sum::<u64>();
    }

    pub(crate) fn observe(&mut self, observer: &Observer) {
        self.events += observer.events;
        self.resumed += observer.resumed;
        self.resets += observer.resets;
    }
}

#[allow(clippy::print_stdout)] // The report of a long soak.
pub(crate) fn print(storage: &str, length: Duration, count: &Count, operator: &Operator, figures: &[Figures]) {
    let Count { tally, peers, events, resumed, resets } = count;
    println!("soak of {storage} for {length:?} in {} rounds", figures.len() - 1);
    println!("  {} calls answered, {} retries", tally.calls, tally.failed_tries);
    println!("  {events} events received, {resumed} resumes by cursor, {resets} resets");
    println!("  {peers} hostile peers, {} kills, {} scrapes", operator.kills, operator.scrapes);
    let most = figures[1..].iter().map(|figures| figures.resident).max().unwrap_or_default();
    for (when, figures) in [("start", &figures[0]), ("round 1", &figures[1]), ("end", &figures[figures.len() - 1])] {
        let Figures { resident, open_fds, threads, file } = figures;
        println!(
            "  at rest, {when}: {resident} bytes resident, {open_fds} descriptors, {threads} threads, {file} bytes of file"
        );
    }
    println!("  at rest, at most: {most} bytes resident");
}
