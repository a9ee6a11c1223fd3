//! A Redis Cluster of a test's own.

use std::{
    thread,
    time::{Duration, Instant},
};

use redis::cmd;

use super::server::RedisServer;

const SLOTS: usize = 16_384;

const PATIENCE: Duration = Duration::from_secs(60);

/// Three masters, each with so many replicas.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

pub(crate) const MASTERS: usize = 3;

impl RedisCluster {
    pub(crate) fn start(replicas_each: usize) -> Self {
        // A node that does not answer for this long is replaced.
        let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"];
        let count = MASTERS * (1 + replicas_each);
        let nodes: Vec<RedisServer> = (0..count).map(|_| RedisServer::start(&args)).collect();
        let cluster = Self { nodes };
        for (number, node) in cluster.nodes.iter().enumerate() {
            let () = node.ask(cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(number + 1)).unwrap();
            let first = cluster.nodes[0].port;
            let () = node.ask(cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(first)).unwrap();
            if number < MASTERS {
                let (begin, end) = (number * SLOTS / MASTERS, (number + 1) * SLOTS / MASTERS - 1);
                let () = node.ask(cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(begin).arg(end)).unwrap();
            }
        }
        cluster.wait("every node to know the others", |cluster| {
            let known = format!("cluster_known_nodes:{count}\r\n");
            cluster.nodes.iter().all(|node| node.cluster_info().contains(&known))
        });
        for (number, replica) in cluster.nodes.iter().enumerate().skip(MASTERS) {
            let master: String = cluster.nodes[number % MASTERS].ask(cmd("CLUSTER").arg("MYID")).unwrap();
            let () = replica.ask(cmd("CLUSTER").arg("REPLICATE").arg(master)).unwrap();
        }
        cluster.wait("the cluster to serve", |cluster| {
            let serves = |node: &RedisServer| node.cluster_info().contains("cluster_state:ok");
            let replicates = |node: &RedisServer| {
                node.ask::<String>(cmd("INFO").arg("replication")).unwrap().contains("master_link_status:up")
            };
            cluster.nodes.iter().all(serves) && cluster.nodes[MASTERS..].iter().all(replicates)
        });
        cluster
    }

    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of a registry in it.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}?{parameters}", nodes.join(","))
    }
}

impl RedisServer {
    pub(crate) fn cluster_info(&self) -> String {
        self.ask(cmd("CLUSTER").arg("INFO")).unwrap_or_default()
    }
}
