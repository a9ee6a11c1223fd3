//! A master, two replicas of it and three Sentinels, for one test.

use std::{
    collections::HashMap,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use redis::{Client, cmd};
use tokio::sync::mpsc;

use super::server::{RedisServer, ServerKind, wait};

const PATIENCE: Duration = Duration::from_secs(60);

/// So that a failover takes only a few seconds, and a busy machine causes none.
const DOWN_AFTER: Duration = Duration::from_secs(3);

/// The name of the master.
pub(crate) const MASTER: &str = "main";

/// Servers of which one is the master, and their Sentinels, two of which must agree on a failover.
pub(crate) struct SentinelGroup {
    pub(crate) servers: Vec<RedisServer>,
    pub(crate) sentinels: Vec<RedisServer>,
}

pub(crate) const SERVERS: usize = 3;

/// What a Sentinel says about the master.
type Fields = HashMap<String, String>;

impl SentinelGroup {
    pub(crate) fn start() -> Self {
        Self::start_kind(ServerKind::Redis, &[], &[])
    }

    /// Starts another kind of servers, with extra arguments for each server and for each Sentinel.
    pub(crate) fn start_kind(kind: ServerKind, args: &[&str], sentinel_args: &[&str]) -> Self {
        let mut servers = vec![kind.start(&[&["--repl-diskless-sync-delay", "0"], args].concat())];
        for _ in 1..SERVERS {
            servers.push(kind.start_replica(&servers[0], args));
        }
        let first = servers[0].port;
        let down_after = DOWN_AFTER.as_millis();
        let configuration = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {first} 2\n\
             sentinel down-after-milliseconds {MASTER} {down_after}\n\
             sentinel failover-timeout {MASTER} 10000\n"
        );
        let sentinels = (0..3).map(|_| RedisServer::start_sentinel(kind, &configuration, sentinel_args)).collect();
        let group = Self { servers, sentinels };
        group.wait("the Sentinels to know everyone", Self::is_whole);
        group
    }

    /// Returns the URL of a registry in the master.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+sentinel://{}/{MASTER}?{parameters}", hosts.join(","))
    }

    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        wait(what, || is_so(self));
    }

    /// Whether all Sentinels agree on the master and know everyone, and all other servers follow the master.
    pub(crate) fn is_whole(&self) -> bool {
        let says: Vec<Fields> = self.sentinels.iter().map(says).collect();
        let is_settled = |says: &Fields| {
            let field = |name: &str| says.get(name).map_or("", String::as_str);
            field("flags") == "master" && field("num-slaves") == "2" && field("num-other-sentinels") == "2"
        };
        let Some(port) = says[0].get("port") else { return false };
        says.iter().all(|says| is_settled(says) && says.get("port") == Some(port))
            && self.servers.iter().all(|server| server.port.to_string() == *port || server.follows(port))
    }

    /// Returns the server that a Sentinel names.
    pub(crate) fn master(&self) -> usize {
        let port = says(&self.sentinels[0])["port"].clone();
        self.servers.iter().position(|server| server.port.to_string() == port).unwrap()
    }

    /// Starts to listen for failovers.
    pub(crate) fn switches(&self) -> Switches {
        self.switches_of(0..self.sentinels.len())
    }

    /// Starts to listen to some Sentinels.
    pub(crate) fn switches_of(&self, sentinels: Range<usize>) -> Switches {
        let (heard, switches) = mpsc::unbounded_channel();
        for sentinel in &self.sentinels[sentinels] {
            let (heard, port) = (heard.clone(), sentinel.port);
            let (ready, is_ready) = std::sync::mpsc::channel();
            thread::spawn(move || {
                let mut connection = Client::open(("127.0.0.1", port)).unwrap().get_connection().unwrap();
                let mut events = connection.as_pubsub();
                events.subscribe("+switch-master").unwrap();
                ready.send(()).unwrap();
                // Ends with the Sentinel.
                while let Ok(event) = events.get_message() {
                    let text: String = event.get_payload().unwrap();
                    let to = text.split(' ').nth(4).unwrap().parse().unwrap();
                    let _ = heard.send((Instant::now(), to));
                }
            });
            is_ready.recv().unwrap();
        }
        Switches(switches)
    }
}

/// The failovers that the Sentinels report: when, and the port of the new master.
pub(crate) struct Switches(mpsc::UnboundedReceiver<(Instant, u16)>);

impl Switches {
    /// Returns when a Sentinel first named another master than the one at port `old`, and the port of that one.
    pub(crate) async fn after(&mut self, old: u16) -> (Instant, u16) {
        let switched = async {
            loop {
                let (when, to) = self.0.recv().await.expect("the Sentinels run");
                if to != old {
                    return (when, to);
                }
            }
        };
        tokio::time::timeout(PATIENCE, switched).await.expect("Sentinel replaces the master")
    }

    /// Forgets the reports so far.
    pub(crate) fn clear(&mut self) {
        while self.0.try_recv().is_ok() {}
    }
}

fn says(sentinel: &RedisServer) -> Fields {
    sentinel.ask(cmd("SENTINEL").arg("MASTER").arg(MASTER)).unwrap_or_default()
}

impl RedisServer {
    /// Whether this server follows the master at `port` and is connected to it.
    pub(crate) fn follows(&self, port: &str) -> bool {
        let replication: String = self.ask(cmd("INFO").arg("replication")).unwrap_or_default();
        replication.contains(&format!("master_port:{port}\r\n")) && replication.contains("master_link_status:up")
    }
}
