//! Failovers by Sentinel, behind a name whose address changes, and of a Redis Cluster, each by kill, freeze and command.
//!
//! `SESSIOND_TEST_FAILOVERS` sets how often each fault is repeated with each number of replicas to wait for. The default
//! is once, with two of these numbers. `SESSIOND_TEST_WAIT_REPLICAS` chooses one number.

use std::{
    env,
    time::{Duration, Instant},
};

use redis::cmd;
use tokio::{task::block_in_place, time::timeout};

use super::{
    cluster::{MASTERS, NODE_TIMEOUT, RedisCluster},
    failover::{Fleet, Loss, Servers, Switch, print},
    name::Name,
    sentinels::{MASTER, SentinelGroup, Switches},
    server::{ServerKind, is_installed},
};
use crate::long::number;

/// A failover that has taken so long is ordered again.
const GIVES_UP: Duration = Duration::from_secs(20);

/// A master keeps its replicas, even if another master has none.
const CLUSTER_ARGS: [&str; 2] = ["--cluster-migration-barrier", "10"];

/// Servers with Sentinel. sessiond asks the Sentinels, or connects to a name that always stands for the master.
struct Watched {
    group: SentinelGroup,
    switches: Switches,
    name: Option<Name>,
}

impl Watched {
    fn start() -> Self {
        let group = block_in_place(SentinelGroup::start);
        let switches = group.switches();
        Self { group, switches, name: None }
    }

    async fn start_with_name() -> Self {
        let watched = Self::start();
        let name = Name::of(&watched.group.servers[watched.group.master()]).await;
        Self { name: Some(name), ..watched }
    }
}

impl Servers for Watched {
    fn url(&self, parameters: &str) -> String {
        self.name.as_ref().map_or_else(|| self.group.url(parameters), |name| name.url(parameters))
    }

    async fn fail(&mut self, loss: Loss, round: usize) -> Switch {
        let old = self.group.master();
        let port = self.group.servers[old].port;
        self.switches.clear();
        // In every second freeze, the Sentinel that sessiond asks first is on the same machine as the master.
        let with_sentinel = loss == Loss::Freeze && round % 2 == 1;
        let began = Instant::now();
        match loss {
            Loss::Kill => self.group.servers[old].kill(),
            Loss::Freeze => {
                if with_sentinel {
                    self.group.sentinels[0].signal("STOP");
                }
                self.group.servers[old].signal("STOP");
            }
            Loss::Command => {
                let sentinel = &self.group.sentinels[round % 3];
                let () = sentinel.ask(cmd("SENTINEL").arg("FAILOVER").arg(MASTER)).unwrap();
            }
        }
        let (named, new) = loop {
            match timeout(GIVES_UP, self.switches.after(port)).await {
                Ok(switch) => break switch,
                // A Sentinel whose machine is busy may give up.
                Err(_) => drop(self.group.sentinels[round % 3].ask::<()>(cmd("SENTINEL").arg("FAILOVER").arg(MASTER))),
            }
        };
        if let Some(name) = &self.name {
            let new = self.group.servers.iter().find(|server| server.port == new);
            name.point_to(new.expect("the new master is one of the servers"));
        }
        match loss {
            Loss::Kill => block_in_place(|| self.group.servers[old].restart()),
            Loss::Freeze => {
                self.group.servers[old].signal("CONT");
                if with_sentinel {
                    self.group.sentinels[0].signal("CONT");
                }
            }
            Loss::Command => {}
        }
        Switch { began, named }
    }

    fn followers(&self) -> usize {
        self.group.servers[self.group.master()].followers()
    }

    fn is_whole(&self) -> bool {
        self.group.is_whole()
    }
}

impl Servers for RedisCluster {
    fn url(&self, parameters: &str) -> String {
        Self::url(self, &format!("partitions=6&{parameters}"))
    }

    async fn fail(&mut self, loss: Loss, round: usize) -> Switch {
        let master = self.masters()[round % MASTERS];
        let id: String = self.nodes[master].ask(cmd("CLUSTER").arg("MYID")).unwrap();
        let began = Instant::now();
        match loss {
            Loss::Kill => self.nodes[master].kill(),
            Loss::Freeze => self.nodes[master].signal("STOP"),
            Loss::Command => {
                let port = self.nodes[master].port.to_string();
                let replica = self.nodes.iter().find(|node| node.follows(&port)).expect("the master has a replica");
                let () = replica.ask(cmd("CLUSTER").arg("FAILOVER")).unwrap();
            }
        }
        block_in_place(|| self.wait_for_successor(master, &id));
        let named = Instant::now();
        match loss {
            Loss::Kill => block_in_place(|| self.nodes[master].restart()),
            Loss::Freeze => self.nodes[master].signal("CONT"),
            Loss::Command => {}
        }
        Switch { began, named }
    }

    fn followers(&self) -> usize {
        let masters = self.masters();
        let fewest = masters.iter().map(|master| self.nodes[*master].followers()).min().unwrap_or_default();
        if masters.len() == MASTERS { fewest } else { 0 }
    }

    fn is_whole(&self) -> bool {
        Self::is_whole(self)
    }
}

/// Fails over once or more for each fault and each number of replicas to wait for.
async fn fail_over<S: Servers>(what: &str, start: impl AsyncFn() -> S) {
    let rounds = number("SESSIOND_TEST_FAILOVERS", 0) as usize;
    let waits = match env::var("SESSIOND_TEST_WAIT_REPLICAS") {
        Ok(one) => vec![one.parse().unwrap()],
        Err(_) if rounds > 0 => vec![0, 1, 2],
        Err(_) => vec![0, 2],
    };
    for wait in waits {
        let parameters = format!("buckets=1024&wait_replicas={wait}");
        let mut fleet = Fleet::start(start().await, &parameters).await;
        for loss in Loss::ALL {
            let mut outcomes = Vec::new();
            for _ in 0..rounds.max(1) {
                let outcome = fleet.fail(loss, wait).await;
                outcome.check();
                if wait == 2 {
                    outcome.check_nothing_is_lost();
                }
                outcomes.push(outcome);
            }
            print(what, loss, wait, &outcomes);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_failovers_under_load_lose_nothing_that_all_replicas_had() {
    if is_installed() {
        fail_over("Sentinel", async || Watched::start()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_behind_a_name_under_load_lose_nothing_that_all_replicas_had() {
    if is_installed() {
        fail_over("a name", Watched::start_with_name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_failovers_under_load_lose_nothing_that_all_replicas_had() {
    if is_installed() {
        let start =
            async || block_in_place(|| RedisCluster::start_kind(ServerKind::Redis, 2, NODE_TIMEOUT, &CLUSTER_ARGS));
        fail_over("Redis Cluster", start).await;
    }
}
