//! Measures how a fleet grows: `cargo bench --bench fleet [-- --quick]`.
//!
//! Starts a Redis Cluster of three masters and replicas of sessiond over it, sends calls at fixed rates, and reports the
//! processor time of each process from `/proc`. Everything shares the cores of one machine, so the throughput says
//! nothing. A model is fitted to the processor times, and says what larger fleets could carry. Prints tables in
//! Markdown; `docs/fleet.md` has those of one run. A run takes about five minutes, and with `--quick` one
//! minute.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod cluster;
mod fit;
mod fleet;
mod load;
// The pause between reads of a log, as it is built.
#[path = "../../src/storage/redis/pace.rs"]
#[allow(dead_code)]
mod log_pace;
mod model;
mod observed;
#[path = "../compare/pace.rs"]
#[allow(dead_code)]
mod pace;
#[path = "../process/mod.rs"]
mod process;
mod tables;
#[path = "../compare/wire.rs"]
#[allow(dead_code)]
mod wire;

use std::{env, thread, time::Duration};

use cluster::Cluster;
use fleet::{Fleet, Shape};
use load::{Calls, Load};

/// Changes per second: few, so that each is an entry and a read of its own, and many.
const FEW: u32 = 500;
const MANY: u32 = 2000;
/// Batches per second.
const BATCHES: u32 = 20;
/// Observers of each replica, if there are any. They and the callers have eight connections, four for each worker.
const OBSERVERS: u32 = 60;

fn main() {
    let is_quick = env::args().any(|arg| arg == "--quick");
    let Some(mut cluster) = Cluster::start() else {
        println!("Redis is not installed.");
        return;
    };
    let (replicas, partitions, windows): (&[usize], &[usize], u32) =
        if is_quick { (&[1, 4], &[3], 1) } else { (&[1, 2, 4, 8], &[1, 3, 6], 3) };
    let mut samples = Vec::new();
    let mut memory = Vec::new();
    let mut bytes = None;
    for &partitions in partitions {
        for &replicas in replicas {
            let shape = Shape { replicas, partitions };
            eprintln!("{replicas} replicas, {partitions} partitions");
            let mut fleet = Fleet::start(&mut cluster, shape, windows);
            let fresh = fleet.replicas[0].resident();
            samples.extend(loads(shape).into_iter().map(|load| fleet.measure(load)));
            memory.push((shape, fresh, fleet.replicas[0].resident()));
            if replicas == 1 && partitions == 3 {
                bytes = Some(observed_bytes(&mut fleet));
            }
        }
    }
    tables::print(&samples, &memory, bytes);
    for (n, master) in cluster.masters.iter_mut().enumerate() {
        println!("Memory of master {n} at the end: {:.1} MB", master.memory() / 1e6);
    }
}

/// Returns the loads that a fleet is measured under.
fn loads(shape: Shape) -> Vec<Load> {
    let changes = Load { calls: Calls::Changes, ..Load::IDLE };
    let batches = Load { calls: Calls::Batches, rate: BATCHES, only_first: true, ..Load::IDLE };
    let mut loads = vec![
        Load::IDLE,
        Load { rate: FEW, ..changes },
        Load { rate: MANY, ..changes },
        Load { rate: MANY, only_first: true, ..changes },
        batches,
        Load { calls: Calls::Most, ..Load::IDLE },
    ];
    if shape.partitions == 3 {
        loads.push(Load { calls: Calls::Has, rate: MANY, ..Load::IDLE });
        loads.push(Load { rate: MANY, observers: OBSERVERS, ..changes });
        loads.push(Load { observers: OBSERVERS, ..batches });
    }
    loads
}

/// The bytes per event that an observer receives, and the events per frame, at two loads.
fn observed_bytes(fleet: &mut Fleet<'_>) -> Vec<(Load, f64, f64)> {
    let address = fleet.replicas[0].address;
    let changes = Load { calls: Calls::Changes, rate: MANY, ..Load::IDLE };
    let batches = Load { calls: Calls::Batches, rate: BATCHES, only_first: true, ..Load::IDLE };
    let mut all = Vec::new();
    for load in [changes, batches] {
        let before = fleet.changes();
        let reader = thread::spawn(move || observed::bytes(address, Duration::from_secs(6)));
        // The observer subscribes before the load begins, and leaves after its end.
        thread::sleep(Duration::from_millis(300));
        fleet.measure(load);
        let (bytes, frames) = reader.join().unwrap();
        let events = fleet.changes() - before;
        all.push((load, bytes as f64 / events, events / frames.max(1) as f64));
    }
    all
}
