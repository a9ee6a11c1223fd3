//! Finds the Redis server that owns a key, and connects to it.
//!
//! For a cluster, this does not use redis-rs' cluster client, which hides which server answers, resends calls that may have been
//! executed, and in tests hung forever after a failover: see docs/design/redis.md.

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

use super::{fault::Fault, sentinels::Sentinels, term::Term, url::RedisUrl};

/// The oldest version of Redis that has the commands of the scripts.
const OLDEST_VERSION: (u32, u32) = (6, 2);

/// The servers that a URL names.
pub(super) struct Servers {
    /// With Sentinel, the only one is the master, whose address is wrong.
    nodes: Vec<ConnectionInfo>,
    is_cluster: bool,
    sentinels: Option<Arc<Sentinels>>,
    /// The time limit for connecting.
    timeout: Duration,
    /// The runtime of all connections, whichever runtime their callers are in.
    runtime: Handle,
    /// The index of the cluster node to ask next.
    next: AtomicUsize,
    /// The cluster slot of each key, which never changes.
    slots: Mutex<HashMap<String, u16>>,
}

/// A new connection.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    /// The server's run_id.
    pub(super) server: Arc<str>,
    pub(super) term: Term,
}

impl Servers {
    /// With Sentinel, no connection can be made until a task follows the [`sentinels`](Self::sentinels).
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub(super) fn new(url: &RedisUrl) -> Result<Self, Fault> {
        // After this timeout, the kernel closes connections to a peer that no longer acknowledges data.
        let settings = TcpSettings::default().set_nodelay(true).set_user_timeout(2 * url.timeout);
        let with_settings = |nodes: Vec<ConnectionInfo>| {
            nodes.into_iter().map(|node| node.set_tcp_settings(settings.clone())).collect::<Vec<_>>()
        };
        let sentinels = url
            .sentinels()
            .map_err(Fault::while_connecting)?
            .map(|(nodes, master)| Arc::new(Sentinels::new(with_settings(nodes), master, url.timeout)));
        Ok(Self {
            nodes: with_settings(url.nodes().map_err(Fault::while_connecting)?),
            is_cluster: url.is_cluster(),
            sentinels,
            timeout: url.timeout,
            runtime: Handle::current(),
            next: AtomicUsize::new(0),
            slots: Mutex::default(),
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    pub(super) fn sentinels(&self) -> Option<&Arc<Sentinels>> {
        self.sentinels.as_ref()
    }

    /// Connects to the server that currently owns `key`.
    pub(super) async fn connect(self: &Arc<Self>, key: &str) -> Result<Connected, Fault> {
        let (servers, key) = (Arc::clone(self), key.to_owned());
        let connecting = self.runtime.spawn(async move { servers.connect_here(&key).await });
        connecting.await.unwrap_or_else(|_| Err(Fault::unsent("the connection's runtime is shutting down")))
    }

    async fn connect_here(&self, key: &str) -> Result<Connected, Fault> {
        let connecting = async {
            if let Some(sentinels) = &self.sentinels {
                return self.connect_to_master(sentinels).await;
            }
            let node = if self.is_cluster { self.owner_of(key).await? } else { self.any().clone() };
            let connection = self.open(node).await?;
            let server = identify(&connection).await?;
            Ok(Connected { connection, server, term: Term::endless() })
        };
        let outcome = timeout(2 * self.timeout, connecting).await;
        outcome.unwrap_or_else(|_| Err(Fault::unsent("could not connect to Redis in time")))
    }

    async fn connect_to_master(&self, sentinels: &Sentinels) -> Result<Connected, Fault> {
        let ((host, port), term) = sentinels.master().await?;
        let node = self.any().clone();
        let addr = at(node.addr(), host, port);
        let connecting = async {
            let connection = self.open(node.set_addr(addr)).await?;
            check_role(&connection).await?;
            let server = identify(&connection).await?;
            Ok((connection, server))
        };
        match term.within(connecting).await {
            Ok((connection, server)) => Ok(Connected { connection, server, term }),
            // The term has ended, but nothing was sent yet.
            Err(Fault::Unknown(error)) => Err(Fault::Undone(error)),
            Err(fault) => Err(fault),
        }
    }

    fn any(&self) -> &ConnectionInfo {
        &self.nodes[self.next.load(Ordering::Relaxed) % self.nodes.len()]
    }

    async fn open(&self, node: ConnectionInfo) -> Result<MultiplexedConnection, Fault> {
        // There is no response timeout, because callers have their own.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(None);
        let client = Client::open(node).map_err(Fault::while_connecting)?;
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(Fault::while_connecting)
    }

    /// Asks a node of the cluster which node owns a key. The next call asks another node, because one node's answer may
    /// be stale.
    async fn owner_of(&self, key: &str) -> Result<ConnectionInfo, Fault> {
        let any = self.any().clone();
        self.next.fetch_add(1, Ordering::Relaxed);
        let addr = any.addr().clone();
        let mut connection = timeout(self.timeout / 2, self.open(any.clone()))
            .await
            .unwrap_or_else(|_| Err(Fault::unsent("could not connect to a node of the Redis Cluster in time")))?;
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
                // A node omits the host if it does not know its own address. Then the owner is the node that was asked.
                let host = if host.is_empty() { host_of(&addr) } else { host };
                Ok(any.set_addr(at(&addr, host, port)))
            }
            None => Err(Fault::unsent("no node of the Redis Cluster owns the slot of a partition")),
        }
    }
}

/// Returns the master of a slot range if the range contains the slot.
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

/// Checks that a server is a master. INFO says the same as ROLE, and every user needs it anyway.
async fn check_role(connection: &MultiplexedConnection) -> Result<(), Fault> {
    let info = info(connection, "replication").await?;
    if field(&info, "role") == "master" {
        return Ok(());
    }
    Err(Fault::unsent("the server that Sentinel names is not a master"))
}

async fn info(connection: &MultiplexedConnection, section: &str) -> Result<String, Fault> {
    let info = redis::cmd("INFO").arg(section).query_async(&mut connection.clone()).await;
    info.map_err(Fault::while_connecting)
}

/// Returns a field in the text of INFO.
fn field<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default()
}

/// Returns the run_id of a server, after checking its version.
async fn identify(connection: &MultiplexedConnection) -> Result<Arc<str>, Fault> {
    let info = info(connection, "server").await?;
    let version = field(&info, "redis_version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST_VERSION {
        return Err(Fault::Setup(format!("this is Redis {version}: sessiond needs Redis 6.2 or later, or Valkey")));
    }
    Ok(field(&info, "run_id").into())
}

fn host_of(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}

/// Returns an address of the same kind with another host and port.
fn at(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

/// Returns the error for a missing answer.
pub(super) fn missing() -> RedisError {
    (ErrorKind::Client, "an answer is missing").into()
}
