//! Moves slots of a Redis Cluster from node to node, and to a new master, while sessions change.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use redis::cmd;
use sessiond::{client::Client, session::SessionKey};
use tokio::{
    join,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{
    cluster::{MASTERS, RedisCluster},
    server::{RedisServer, is_installed},
};
use crate::{
    program::Program,
    retry::Retrying,
    soak::{
        Changes,
        gateway::Gateway,
        observer::{Habit, Observer},
        writer::Writer,
    },
};

const MOVING: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(60);

/// Enough markers that every partition has one. They are the last sessions created in each.
const MARKERS: i64 = 500;

impl RedisCluster {
    /// Returns the slots that have keys, each with its node.
    fn slots(&self) -> Vec<(u16, usize)> {
        let slots = self.nodes.iter().enumerate().flat_map(|(number, node)| {
            let keys: Vec<String> = node.ask(cmd("KEYS").arg("*")).unwrap();
            let tags: BTreeSet<String> =
                keys.iter().filter_map(|key| Some(key.split_once('}')?.0.to_owned() + "}")).collect();
            tags.into_iter().map(move |tag| (node.ask(cmd("CLUSTER").arg("KEYSLOT").arg(tag)).unwrap(), number))
        });
        slots.collect()
    }

    /// Moves a slot the way `redis-cli --cluster reshard` does.
    fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let id = |node: usize| self.nodes[node].ask::<String>(cmd("CLUSTER").arg("MYID")).unwrap();
        let set = || {
            let mut set = cmd("CLUSTER");
            set.arg("SETSLOT").arg(slot);
            set
        };
        let () = target.ask(set().arg("IMPORTING").arg(id(from))).unwrap();
        let () = source.ask(set().arg("MIGRATING").arg(id(to))).unwrap();
        loop {
            // Moves a few keys at a time, so that meanwhile the keys are spread over both nodes.
            let keys: Vec<String> = source.ask(cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(2)).unwrap();
            if keys.is_empty() {
                break;
            }
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(target.port).arg("").arg(0).arg(5000).arg("KEYS").arg(keys);
            let _: String = source.ask(&migrate).unwrap();
        }
        for node in [to, from].into_iter().chain((0..self.nodes.len()).filter(|node| ![to, from].contains(node))) {
            let () = self.nodes[node].ask(set().arg("NODE").arg(id(to))).unwrap();
        }
        self.wait("the nodes to agree", Self::nodes_agree);
    }

    /// Whether all nodes agree about who owns which slots, and in which epoch. `redis-cli` does not start resharding
    /// before that: a slot that moves again too soon may end up with each node saying that another one owns it.
    fn nodes_agree(&self) -> bool {
        let view = |node: &RedisServer| -> BTreeSet<String> {
            let nodes: String = node.ask(cmd("CLUSTER").arg("NODES")).unwrap();
            let owned = |line: &str| {
                let fields: Vec<&str> = line.split(' ').collect();
                let slots: Vec<&str> = fields[8..].iter().copied().filter(|slot| !slot.starts_with('[')).collect();
                format!("{} {} {slots:?}", fields[0], fields[6])
            };
            nodes.lines().map(owned).collect()
        };
        let first = view(&self.nodes[0]);
        self.nodes[1..].iter().all(|node| view(node) == first)
    }
}

fn caller(addrs: &[SocketAddr], first: usize) -> Retrying {
    let client = |addr: &SocketAddr| Client::connect_lazy(&format!("http://{addr}")).unwrap();
    Retrying::new(addrs.iter().map(client).collect(), first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_slots_to_a_new_master_under_load_loses_nothing_and_resets_no_observer() {
    if !is_installed() {
        return;
    }
    let mut cluster = RedisCluster::start(0);
    let storage = cluster.url("timeout_ms=1000&partitions=6&buckets=48");
    let args = ["--workers", "1", "--storage", &storage];
    let programs = [Program::start(&args).await, Program::start(&args).await];
    let addrs = programs.each_ref().map(|program| program.addr);
    let mut writers: Vec<Writer> = (0..4).map(Writer::new).collect();
    let mut gateways: Vec<Gateway> = (4..8).map(Gateway::new).collect();
    let habits = [Habit::Stays, Habit::Stays, Habit::Leaves, Habit::Leaves];
    let mut observers = habits.map(Observer::new);
    for (observer, addr) in observers.iter_mut().zip(addrs.into_iter().cycle()) {
        observer.sync(addr).await;
    }

    let until = Instant::now() + MOVING;
    let markers: Vec<SessionKey> = (0..MARKERS).map(|id| SessionKey::new(-1, id)).collect();
    let moving = spawn_blocking(move || {
        let (mut moved, mut moved_to_new) = (0, 0);
        while Instant::now() < until {
            for (slot, node) in cluster.slots() {
                let to = (node + 1) % cluster.nodes.len();
                cluster.move_slot(slot, node, to);
                moved += 1;
                moved_to_new += usize::from(to == MASTERS);
            }
            // After the first round.
            if cluster.nodes.len() == MASTERS {
                cluster.add_master();
            }
        }
        (moved, moved_to_new, cluster)
    });
    let load = async {
        let writing = writers.iter_mut().enumerate();
        let writing = join_all(writing.map(|(number, writer)| writer.write(caller(&addrs, number), until)));
        let coming_and_going = gateways.iter_mut().enumerate();
        let coming_and_going =
            join_all(coming_and_going.map(|(number, gateway)| gateway.come_and_go(caller(&addrs, number), until)));
        let (tallies, _, moved) = join!(writing, coming_and_going, moving);
        caller(&addrs, 0).call(async |client| client.batch_create(&markers).await).await.unwrap();
        (tallies, moved.unwrap())
    };
    let observing = observers.iter_mut().zip(addrs.into_iter().cycle());
    let observing = join_all(observing.map(|(observer, addr)| observer.observe(addr, until, &markers)));
    let both = timeout(MOVING + PATIENCE, async { join!(load, observing) });
    let ((tallies, (moved, moved_to_new, _cluster)), _) = both.await.expect("every observer receives all events");

    let mut changes: Changes = markers.iter().map(|marker| (*marker, 1)).collect();
    writers.iter().for_each(|writer| changes.extend(&writer.changes));
    gateways.iter().for_each(|gateway| changes.extend(&gateway.changes));
    observers.iter_mut().for_each(|observer| observer.is_exact(&changes));
    assert!(moved >= 12, "each partition moves at least twice: {moved}");
    assert!(moved_to_new > 0, "the new master gets slots");
    println!("{moved} slots moved, {moved_to_new} of them to the new master; {tallies:?}");
}
