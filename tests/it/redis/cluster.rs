//! A Redis Cluster for one test.

use std::{
    thread,
    time::{Duration, Instant},
};

use redis::cmd;

use super::server::{RedisServer, ServerKind};

const SLOTS: usize = 16_384;

const PATIENCE: Duration = Duration::from_secs(60);

/// Short, so that a failover takes only a few seconds.
pub(crate) const NODE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A cluster of three masters, each with the same number of replicas.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

pub(crate) const MASTERS: usize = 3;

fn start_node(kind: ServerKind, node_timeout: Duration, args: &[&str]) -> RedisServer {
    let node_timeout = node_timeout.as_millis().to_string();
    let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", &node_timeout];
    kind.start(&[&cluster, ["--repl-diskless-sync-delay", "0"].as_slice(), args].concat())
}

impl RedisCluster {
    pub(crate) fn start(replicas_each: usize) -> Self {
        Self::start_kind(ServerKind::Redis, replicas_each, NODE_TIMEOUT, &[])
    }

    /// Starts a cluster of another kind of server, with extra arguments for each node. A node that does not answer for
    /// `node_timeout` is replaced by its replica.
    pub(crate) fn start_kind(kind: ServerKind, replicas_each: usize, node_timeout: Duration, args: &[&str]) -> Self {
        let count = MASTERS * (1 + replicas_each);
        let nodes: Vec<RedisServer> = (0..count).map(|_| start_node(kind, node_timeout, args)).collect();
        let cluster = Self { nodes };
        for number in 0..count {
            cluster.meet(number);
            if number < MASTERS {
                // Redis 6.2 does not have ADDSLOTSRANGE.
                let slots: Vec<usize> = (number * SLOTS / MASTERS..(number + 1) * SLOTS / MASTERS).collect();
                let () = cluster.nodes[number].ask(cmd("CLUSTER").arg("ADDSLOTS").arg(slots)).unwrap();
            }
        }
        cluster.wait("every node to know the others", Self::nodes_know_each_other);
        for (number, replica) in cluster.nodes.iter().enumerate().skip(MASTERS) {
            let master: String = cluster.nodes[number % MASTERS].ask(cmd("CLUSTER").arg("MYID")).unwrap();
            let () = replica.ask(cmd("CLUSTER").arg("REPLICATE").arg(master)).unwrap();
        }
        cluster.wait("the cluster to serve", Self::is_whole);
        cluster
    }

    /// Adds a master, which has no slots yet.
    pub(crate) fn add_master(&mut self) {
        // Otherwise it would become a replica when it loses its last slot.
        let args = ["--cluster-allow-replica-migration", "no"];
        self.nodes.push(start_node(ServerKind::Redis, NODE_TIMEOUT, &args));
        self.meet(self.nodes.len() - 1);
        let is_joined =
            |cluster: &Self| cluster.nodes_know_each_other() && cluster.nodes.iter().all(RedisServer::serves);
        self.wait("the new node to join", is_joined);
    }

    /// Introduces a new node to the first one.
    fn meet(&self, number: usize) {
        let node = &self.nodes[number];
        let () = node.ask(cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(number + 1)).unwrap();
        let () = node.ask(cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(self.nodes[0].port)).unwrap();
    }

    fn nodes_know_each_other(&self) -> bool {
        let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
        self.nodes.iter().all(|node| node.cluster_info().contains(&known))
    }

    /// Whether every node says that the cluster serves, and every replica follows its master.
    pub(crate) fn is_whole(&self) -> bool {
        let is_up = |node: &RedisServer| {
            let replication: String = node.ask(cmd("INFO").arg("replication")).unwrap_or_default();
            replication.contains("role:master") || replication.contains("master_link_status:up")
        };
        self.nodes.iter().all(|node| node.serves() && is_up(node)) && self.masters().len() == MASTERS
    }

    /// Returns the nodes that report themselves as masters.
    pub(crate) fn masters(&self) -> Vec<usize> {
        let is_master = |node: &RedisServer| {
            let role = node.ask::<Vec<redis::Value>>(&cmd("ROLE")).unwrap_or_default();
            role.first().is_some_and(|role| *role == redis::Value::BulkString(b"master".to_vec()))
        };
        (0..self.nodes.len()).filter(|node| is_master(&self.nodes[*node])).collect()
    }

    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "timed out waiting for {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all other nodes serve without the master with this number and id.
    pub(crate) fn wait_for_successor(&self, master: usize, id: &str) {
        self.wait("the cluster to serve without the master", |cluster| {
            let nodes = cluster.nodes.iter().enumerate().filter(|(number, _)| *number != master);
            nodes.map(|(_, node)| node).all(|node| {
                let known: String = node.ask(cmd("CLUSTER").arg("NODES")).unwrap_or_default();
                let has_slots = |line: &str| line.contains(id) && line.split(' ').count() > 8;
                node.serves() && !known.lines().any(has_slots)
            })
        });
    }

    /// Returns the URL of a registry in this cluster.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}?{parameters}", nodes.join(","))
    }
}

impl RedisServer {
    /// Whether this node says that the cluster serves.
    pub(crate) fn serves(&self) -> bool {
        self.cluster_info().contains("cluster_state:ok")
    }

    pub(crate) fn cluster_info(&self) -> String {
        self.ask(cmd("CLUSTER").arg("INFO")).unwrap_or_default()
    }
}
