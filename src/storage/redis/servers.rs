//! Redis' servers: which one owns a key, and how to connect to it.
//!
//! redis-rs' cluster client is not used. It hides which server answers, repeats calls that may have been executed, and
//! could hang forever after a failover: see ARCHITECTURE.md.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::{runtime::Handle, time::timeout};

use super::{fault::Fault, url::RedisUrl};

/// The oldest version of Redis that has the commands of the scripts.
const OLDEST_VERSION: (u32, u32) = (6, 2);

/// The servers that a URL names.
pub(super) struct Servers {
    nodes: Vec<ConnectionInfo>,
    is_cluster: bool,
    /// How long connecting may take.
    timeout: Duration,
    /// All connections belong to this runtime, whoever asks for them.
    runtime: Handle,
    /// The node of a cluster to ask next.
    next: AtomicUsize,
    /// The slot of each key. It never changes.
    slots: Mutex<HashMap<String, u16>>,
}

impl Servers {
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub(super) fn new(url: &RedisUrl) -> Result<Self, Fault> {
        // With this timeout the kernel closes connections to a peer that has vanished.
        let settings = TcpSettings::default().set_nodelay(true).set_user_timeout(2 * url.timeout);
        let nodes = url.nodes().map_err(Fault::while_connecting)?;
        Ok(Self {
            nodes: nodes.into_iter().map(|node| node.set_tcp_settings(settings.clone())).collect(),
            is_cluster: url.is_cluster(),
            timeout: url.timeout,
            runtime: Handle::current(),
            next: AtomicUsize::new(0),
            slots: Mutex::default(),
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Connects to the server that owns `key` now. Returns its run_id, too.
    pub(super) async fn connect(self: &Arc<Self>, key: &str) -> Result<(MultiplexedConnection, Arc<str>), Fault> {
        let (servers, key) = (Arc::clone(self), key.to_owned());
        let connecting = self.runtime.spawn(async move { servers.connect_here(&key).await });
        connecting.await.unwrap_or_else(|_| Err(Fault::unsent("the connection's runtime is shutting down")))
    }

    async fn connect_here(&self, key: &str) -> Result<(MultiplexedConnection, Arc<str>), Fault> {
        let connecting = async {
            let node = if self.is_cluster { self.owner_of(key).await? } else { self.any().clone() };
            let connection = self.open(node).await?;
            let server = identify(&connection).await?;
            Ok((connection, server))
        };
        let outcome = timeout(2 * self.timeout, connecting).await;
        outcome.unwrap_or_else(|_| Err(Fault::unsent("Redis cannot be reached in time")))
    }

    fn any(&self) -> &ConnectionInfo {
        &self.nodes[self.next.load(Ordering::Relaxed) % self.nodes.len()]
    }

    async fn open(&self, node: ConnectionInfo) -> Result<MultiplexedConnection, Fault> {
        // Callers have timeouts of their own.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(None);
        let client = Client::open(node).map_err(Fault::while_connecting)?;
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(Fault::while_connecting)
    }

    /// Asks a node of the cluster which one owns a key. The next call asks another node, because what one says may be
    /// out of date.
    async fn owner_of(&self, key: &str) -> Result<ConnectionInfo, Fault> {
        let any = self.any().clone();
        self.next.fetch_add(1, Ordering::Relaxed);
        let addr = any.addr().clone();
        let mut connection = timeout(self.timeout / 2, self.open(any.clone()))
            .await
            .unwrap_or_else(|_| Err(Fault::unsent("a node of the cluster cannot be reached in time")))?;
        let known = self.slots.lock().get(key).copied();
        let slot = match known {
            Some(slot) => slot,
            None => {
                let mut ask = redis::cmd("CLUSTER");
                let slot = ask.arg("KEYSLOT").arg(key).query_async(&mut connection).await;
                let slot = slot.map_err(Fault::while_connecting)?;
                self.slots.lock().insert(key.to_owned(), slot);
                slot
            }
        };
        let mut ask = redis::cmd("CLUSTER");
        let ranges: Vec<Vec<Value>> =
            ask.arg("SLOTS").query_async(&mut connection).await.map_err(Fault::while_connecting)?;
        let owner = ranges.into_iter().find_map(|range| owner_in(range, slot).transpose());
        match owner {
            Some(owner) => {
                let (host, port) = owner.map_err(Fault::while_connecting)?;
                // A node that does not know its own address leaves it out. It is the one that was asked.
                let host = if host.is_empty() { host_of(&addr) } else { host };
                Ok(any.set_addr(at(&addr, host, port)))
            }
            None => Err(Fault::unsent("no node of the cluster has the slot")),
        }
    }
}

/// Returns the master of a range of slots, if the slot is in that range.
fn owner_in(range: Vec<Value>, slot: u16) -> Result<Option<(String, u16)>, RedisError> {
    let mut parts = range.into_iter();
    let (Some(first), Some(last), Some(Value::Array(master))) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(None);
    };
    let (first, last): (u16, u16) = (redis::from_redis_value(first)?, redis::from_redis_value(last)?);
    let mut master = master.into_iter();
    match (master.next(), master.next()) {
        (Some(host), Some(port)) if (first..=last).contains(&slot) => {
            let host: Option<String> = redis::from_redis_value(host)?;
            Ok(Some((host.unwrap_or_default(), redis::from_redis_value(port)?)))
        }
        _ => Ok(None),
    }
}

/// Asks a server for its run_id, and checks its version.
async fn identify(connection: &MultiplexedConnection) -> Result<Arc<str>, Fault> {
    let info: String =
        redis::cmd("INFO").arg("server").query_async(&mut connection.clone()).await.map_err(Fault::while_connecting)?;
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    let version = field("redis_version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST_VERSION {
        return Err(Fault::Setup(format!("this is Redis {version}: sessiond needs Redis 6.2 or later, or Valkey")));
    }
    Ok(field("run_id").into())
}

fn host_of(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}

/// Returns the same kind of address at another host and port.
fn at(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

/// The error for a missing answer.
pub(super) fn missing() -> RedisError {
    (ErrorKind::Client, "an answer is missing").into()
}
