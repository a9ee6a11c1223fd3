//! A Redis Cluster of three masters, which keeps nothing on disk.

use std::{process::Command, thread, time::Duration};

use redis::{Client, Cmd, Connection, FromRedisValue, RedisResult, cmd};
use tempfile::TempDir;

use super::process::server::{Server, free_port};

pub(crate) const MASTERS: usize = 3;
const SLOTS: usize = 16_384;

/// The bus port of a node is ten thousand higher than its port.
const HIGHEST_PORT: u16 = 55_000;

pub(crate) struct Cluster {
    pub(crate) masters: Vec<Master>,
    // Deleted after the servers were killed.
    _folders: Vec<TempDir>,
}

pub(crate) struct Master {
    pub(crate) server: Server,
    connection: Connection,
}

/// What a server has done since it started.
#[derive(Clone, Copy, Default)]
pub(crate) struct Work {
    /// Entries of logs. Each has the changes of one script.
    pub(crate) entries: f64,
    /// Reads of logs.
    pub(crate) reads: f64,
    /// Sessions that were looked up.
    pub(crate) lookups: f64,
    pub(crate) bytes_sent: f64,
}

impl Cluster {
    /// Starts the servers. Returns `None` if Redis is not installed.
    pub(crate) fn start() -> Option<Self> {
        let (mut masters, mut folders) = (Vec::new(), Vec::new());
        for _ in 0..MASTERS {
            let folder = tempfile::tempdir().unwrap();
            let port = (0..).map(|_| free_port()).find(|port| *port < HIGHEST_PORT).unwrap();
            let mut command = Command::new("redis-server");
            command.current_dir(folder.path()).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
            command.args(["--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]);
            let server = Server::start(&mut command, port)?;
            let connection = Client::open(("127.0.0.1", port)).unwrap().get_connection().unwrap();
            masters.push(Master { server, connection });
            folders.push(folder);
        }
        let mut cluster = Self { masters, _folders: folders };
        let first = cluster.masters[0].server.address.port();
        for (number, master) in cluster.masters.iter_mut().enumerate() {
            let () = master.ask(cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(number + 1)).unwrap();
            let () = master.ask(cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(first)).unwrap();
            let slots: Vec<usize> = (number * SLOTS / MASTERS..(number + 1) * SLOTS / MASTERS).collect();
            let () = master.ask(cmd("CLUSTER").arg("ADDSLOTS").arg(slots)).unwrap();
        }
        for master in &mut cluster.masters {
            while !master.ask::<String>(cmd("CLUSTER").arg("INFO")).unwrap().contains("cluster_state:ok") {
                thread::sleep(Duration::from_millis(20));
            }
        }
        Some(cluster)
    }

    /// Returns the URL of a registry in this cluster.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let nodes: Vec<String> = self.masters.iter().map(|master| master.server.address.to_string()).collect();
        format!("redis+cluster://{}?{parameters}", nodes.join(","))
    }

    /// Returns how many changes the partitions of a registry have had.
    pub(crate) fn changes(&mut self, registry: &str, partitions: usize) -> f64 {
        let mut changes = 0.0;
        for partition in 0..partitions {
            let meta = format!("{{{registry}:{partition}}}:meta");
            // The other masters answer that the key is elsewhere.
            let ends = |master: &mut Master| master.ask::<f64>(cmd("HGET").arg(&meta).arg("end")).ok();
            changes += self.masters.iter_mut().filter_map(ends).sum::<f64>();
        }
        changes
    }
}

impl Master {
    pub(crate) fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        command.query(&mut self.connection)
    }

    pub(crate) fn work(&mut self) -> Work {
        let commands: String = self.ask(cmd("INFO").arg("commandstats")).unwrap();
        let calls = |command: &str| number(&commands, &format!("cmdstat_{command}:calls="));
        let stats: String = self.ask(cmd("INFO").arg("stats")).unwrap();
        Work {
            entries: calls("xadd"),
            reads: calls("xread"),
            lookups: calls("hexists"),
            bytes_sent: number(&stats, "total_net_output_bytes:"),
        }
    }

    /// Returns how many bytes of memory the server uses.
    pub(crate) fn memory(&mut self) -> f64 {
        let memory: String = self.ask(cmd("INFO").arg("memory")).unwrap();
        number(&memory, "used_memory:")
    }
}

/// Returns the number after `name`, 0 if there is none.
fn number(info: &str, name: &str) -> f64 {
    let rest = info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    rest.split([',', '\r']).next().unwrap().parse().unwrap()
}
