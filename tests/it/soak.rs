//! A server under load and faults for as long as `SESSIOND_SOAK` says (`20m`; by default 10 s, and what their end takes): writers, gateways whose
//! leases end, observers that come, go, stall and are cut off, peers that break every rule, and, where the storage outlives
//! it, a server that is killed. In rounds: after each, every observer holds exactly what was written, and the server has
//! come to rest, where what it takes of the machine is bounded.

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

/// How often each session was created or destroyed: it exists when that is odd.
pub(crate) type Changes = HashMap<SessionKey, u32>;

const WRITERS: i64 = 6;
const GATEWAYS: i64 = 4;
const PEERS: usize = 2;

/// How long the end of a round may take: leases run out, and observers that are away come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fewer than are written while an observer stays away, more than while it just leaves.
const RETAINED: u64 = 8000;

/// Peers that say nothing are to be gone when the round ends, and connections grow old many times.
const ARGS: [&str; 6] = ["--workers", "2", "--handshake-timeout", "2s", "--max-connection-age", "3s"];

struct Plan {
    storage: String,
    /// Where the storage is, if in a file.
    file: Option<PathBuf>,
    /// The storage outlives the server.
    kills: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_exact_and_bounded() {
    soak(Plan { storage: "memory:".to_owned(), file: None, kills: false }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_stays_exact_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry");
    soak(Plan { storage: format!("file:{}", file.display()), file: Some(file), kills: true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stays_exact_and_bounded() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    soak(Plan { storage: redis.url("buckets=64"), file: None, kills: true }).await;
}

/// How many rounds, and how long each: about a minute, and two at least, as the first is to warm up.
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
            observer.sync(observer.habit.way(addr, cutter.addr)).await;
        }
        let markers = [SessionKey::new(-1, round.into())];
        let load = async {
            let writing = join_all(writers.iter_mut().map(|writer| writer.write(caller(addr), until)));
            let coming_and_going =
                join_all(gateways.iter_mut().map(|gateway| gateway.come_and_go(caller(addr), until)));
            let peers = join_all((0..PEERS).map(|_| peer::break_rules(addr, until)));
            let ((), written, held, peers) = join!(operator.operate(until), writing, coming_and_going, peers);
            count.add(written.into_iter().chain(held), peers);
            // Whoever is told of this was told of all before.
            caller(addr).call(async |client| client.batch_create(&markers).await).await.unwrap();
        };
        let observing = join_all(observers.iter_mut().map(|observer| {
            let way = observer.habit.way(addr, cutter.addr);
            observer.observe(way, until, &markers)
        }));
        timeout(length + PATIENCE, async { join!(load, observing) }).await.expect("every observer is told of all");

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
