//! Temporary faults of Redis.

use std::time::Duration;

use redis::cmd;
use tokio::time::sleep;

use super::super::{
    clock::start_with_clock,
    cluster::RedisCluster,
    server::{RedisServer, is_installed},
};
use crate::wall_clock::WallClock;

#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The replicas may not use this command.
    Forbid(&'static str),
    /// Redis refuses commands that need memory.
    Full,
    /// A key of a partition is deleted.
    Lose(&'static str, u32),
    /// Every connection is cut.
    Cut,
    /// Redis is paused for this many milliseconds.
    Stop(u64),
    /// Redis' clock is set by this many seconds, and back at the end.
    SetClock(i64),
}

/// Commands used by scripts, and commands that run scripts.
pub(super) const COMMANDS: &[&str] = &[
    "xadd",
    "xtrim",
    "xrange",
    "xread",
    "hset",
    "hsetnx",
    "hget",
    "hmget",
    "hdel",
    "hincrby",
    "hexists",
    "hlen",
    "hscan",
    "hgetall",
    "hkeys",
    "setbit",
    "get",
    "unlink",
    "zadd",
    "zrem",
    "zrangebyscore",
    "zrange",
    "evalsha",
    "time",
];

/// Keys of a partition that a registry can do without or can rebuild.
pub(super) const KEYS: &[&str] = &["log", "attached", "slots", "held", "leases", "deadlines", "meta"];

const USER: &str = "sessiond";
const PASSWORD: &str = "secret";

/// The servers of a registry. The replicas under test log in as a user that can lose permissions.
pub(super) struct Servers {
    nodes: Vec<RedisServer>,
    clock: Option<WallClock>,
    is_cluster: bool,
}

impl Servers {
    /// Starts one server, with an adjustable clock if possible. Returns None if no Redis is installed.
    pub(super) fn single() -> Option<Self> {
        let (server, clock) = match start_with_clock(WallClock::new()) {
            Some((server, clock)) => (server, Some(clock)),
            None => (is_installed().then(|| RedisServer::start(&[]))?, None),
        };
        Some(Self { nodes: vec![server], clock, is_cluster: false }.with_user())
    }

    pub(super) fn cluster() -> Self {
        Self { nodes: RedisCluster::start(0).nodes, clock: None, is_cluster: true }.with_user()
    }

    fn with_user(self) -> Self {
        for node in &self.nodes {
            let () = user(node, &["on", &format!(">{PASSWORD}"), "~*", "&*", "+@all"]);
        }
        self
    }

    pub(super) fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// Returns the URL of a registry, for a replica under test or for one that keeps all its permissions.
    pub(super) fn url(&self, is_tested: bool, parameters: &str) -> String {
        let login = if is_tested { format!("{USER}:{PASSWORD}@") } else { String::new() };
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let (scheme, slash) = if self.is_cluster { ("redis+cluster", "") } else { ("redis", "/") };
        format!("{scheme}://{login}{}{slash}?{parameters}", nodes.join(","))
    }

    /// Starts a fault. `registry` is the registry whose keys are deleted.
    pub(super) async fn begin(&self, trouble: &Trouble, registry: &str) {
        for node in &self.nodes {
            match trouble {
                Trouble::Forbid(command) => user(node, &[&format!("-{command}")]),
                Trouble::Full => node.set("maxmemory", "1"),
                // In a cluster, one node has the key; the others refuse to delete it.
                Trouble::Lose(key, partition) => {
                    let key = format!("{{{registry}:{partition}}}:{key}");
                    drop(node.ask::<i64>(cmd("DEL").arg(key)));
                }
                Trouble::Cut => {
                    let kill = || {
                        node.ask::<i64>(cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes"))
                    };
                    kill().unwrap();
                }
                Trouble::Stop(_) => node.signal("STOP"),
                Trouble::SetClock(_) => {}
            }
        }
        match (trouble, &self.clock) {
            (Trouble::Stop(ms), _) => {
                sleep(Duration::from_millis(*ms)).await;
                self.nodes.iter().for_each(|node| node.signal("CONT"));
            }
            (Trouble::SetClock(seconds), Some(clock)) => clock.set(*seconds),
            _ => {}
        }
    }

    /// Ends every fault.
    pub(super) fn recover(&self) {
        for node in &self.nodes {
            node.signal("CONT");
            user(node, &["+@all"]);
            node.set("maxmemory", "0");
        }
        if let Some(clock) = &self.clock {
            clock.set(0);
        }
    }
}

fn user(node: &RedisServer, rules: &[&str]) {
    let () = node.ask(cmd("ACL").arg("SETUSER").arg(USER).arg(rules)).unwrap();
}

impl Trouble {
    /// Whether the fault may reset observers.
    pub(super) fn loses(&self) -> bool {
        matches!(self, Self::Lose(..))
    }
}
