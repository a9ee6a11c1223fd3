//! Runs a server under load and faults for as long as `SESSIOND_SOAK` says (for example `20m`; by default 10 s plus the
//! time to finish).
//!
//! The load is writers, gateways whose leases end, observers that join, leave, stall and are cut off, and peers that
//! break the protocol. If the storage outlives the server, the server is also killed. After each round, every observer
//! must hold exactly what was written, and the idle server's use of memory, descriptors, threads and disk must be
//! bounded.

mod cutter;
mod figures;
pub(crate) mod gateway;
pub(crate) mod observer;
mod operator;
mod peer;
pub(crate) mod writer;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use sessiond::{client::Client, session::SessionKey};
use tokio::{
    join,
    time::{Instant, timeout},
};

use self::{
    cutter::Cutter,
    figures::{Count, Figures},
    gateway::Gateway,
    observer::{Habit, Observer},
    operator::Operator,
    writer::Writer,
};
use crate::{
    program::own_address,
    redis::server::{RedisServer, is_installed},
    retry::Retrying,
};

/// How often each session was created or destroyed. It exists if the number is odd.
pub(crate) type Changes = HashMap<SessionKey, u32>;

const WRITERS: i64 = 6;
const GATEWAYS: i64 = 4;
const PEERS: usize = 2;

/// How long the end of a round may take, in which leases expire and absent observers return.
const PATIENCE: Duration = Duration::from_secs(60);

/// The retained events: fewer than are written while an observer stays away, more than while one leaves briefly.
const RETAINED: u64 = 8000;

/// Short timeouts, so that silent peers are gone when a round ends and connections often reach their maximum age. The
/// short grace lets abandoned leases end soon after a restart: with the default, leases get 20 s more than the server
/// was away, and it counts up to 15 s too many after a kill.
const ARGS: [&str; 8] =
    ["--workers", "2", "--handshake-timeout", "2s", "--max-connection-age", "3s", "--outage-grace", "5s"];

struct Plan {
    storage: String,
    /// The file of the storage, if it is a file.
    file: Option<PathBuf>,
    /// Whether to kill the server, which requires a storage that outlives it.
    kills: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_storage_stays_exact_and_bounded() {
    soak(Plan { storage: "memory:".to_owned(), file: None, kills: false }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_storage_stays_exact_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry");
    soak(Plan { storage: format!("file:{}", file.display()), file: Some(file), kills: true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_storage_stays_exact_and_bounded() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    soak(Plan { storage: redis.url("buckets=64"), file: None, kills: true }).await;
}

/// Returns the number of rounds and their length: about a minute each, and at least two, because the first is the
/// warm-up.
fn rounds() -> (u32, Duration) {
    let soak = std::env::var("SESSIOND_SOAK").unwrap_or_else(|_| "10s".to_owned());
    let soak = humantime::parse_duration(&soak).expect("SESSIOND_SOAK is a duration, as in 20m");
    let rounds = u32::try_from(soak.as_secs() / 60).unwrap().max(2);
    (rounds, soak / rounds)
}

async fn soak(plan: Plan) {
    let (rounds, length) = rounds();
    let retained = RETAINED.to_string();
    let args = [&ARGS[..], &["--retain-events", &retained, "--storage", &plan.storage]].concat();
    let mut operator = Operator::start(&own_address(), &args, plan.kills).await;
    let addr = operator.addr();
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let mut gateways: Vec<Gateway> = (0..GATEWAYS).map(|number| Gateway::new(WRITERS + number)).collect();
    let mut observers: Vec<Observer> =
        Habit::ALL.iter().flat_map(|habit| [Observer::new(*habit), Observer::new(*habit)]).collect();
    let mut count = Count::default();
    let mut changes = Changes::new();
    let mut figures: Vec<Figures> = vec![Figures::at_rest(operator.program(), plan.file.as_deref()).await];
    for round in 0..rounds {
        let until = Instant::now() + length;
        let cutter = Cutter::start(addr).await;
        for observer in &mut observers {
            observer.sync(observer.habit.addr(addr, cutter.addr)).await;
        }
        let markers = [SessionKey::new(-1, round.into())];
        let load = async {
            let writing = join_all(writers.iter_mut().map(|writer| writer.write(caller(addr), until)));
            let coming_and_going =
                join_all(gateways.iter_mut().map(|gateway| gateway.come_and_go(caller(addr), until)));
            let peers = join_all((0..PEERS).map(|_| peer::break_rules(addr, until)));
            let ((), written, held, peers) = join!(operator.operate(until), writing, coming_and_going, peers);
            count.add(written.into_iter().chain(held), peers);
            // An observer that has received this event has received all earlier ones.
            caller(addr).call(async |client| client.batch_create(&markers).await).await.unwrap();
        };
        let observing = join_all(observers.iter_mut().map(|observer| {
            let to = observer.habit.addr(addr, cutter.addr);
            observer.observe(to, until, &markers)
        }));
        timeout(length + PATIENCE, async { join!(load, observing) }).await.expect("every observer catches up");

        changes.extend(markers.map(|marker| (marker, 1)));
        writers.iter().for_each(|writer| changes.extend(&writer.changes));
        gateways.iter().for_each(|gateway| changes.extend(&gateway.changes));
        observers.iter_mut().for_each(|observer| observer.is_exact(&changes));
        drop(cutter);
        figures.push(Figures::at_rest(operator.program(), plan.file.as_deref()).await);
        figures::are_bounded(&figures);
    }
    operator.is_well();
    for observer in &observers {
        count.observe(observer);
    }
    figures::print(&plan.storage, length * rounds, &count, &operator, &figures);
}

fn caller(addr: SocketAddr) -> Retrying {
    Retrying::new(vec![Client::connect_lazy(&format!("http://{addr}")).unwrap()], 0)
}
