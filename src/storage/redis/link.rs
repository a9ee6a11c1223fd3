//! The connections to Redis over which all calls go.

use std::{io, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, Pipeline,
    RedisError, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
    io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    fault::Fault,
    script::Call,
    url::{RedisUrl, Wait},
};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(500);

/// One multiplexed connection, or one to each node of a cluster. Broken ones are made anew, with growing pauses and jitter.
pub(super) struct Link {
    connections: Connections,
    nodes: Vec<ConnectionInfo>,
    timeout: Duration,
    wait: Option<Wait>,
}

enum Connections {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) async fn connect(url: &RedisUrl) -> Result<Self, Fault> {
        // A peer that is gone without a word is given up by the kernel, so that the next call connects anew.
        let settings = TcpSettings::default().set_nodelay(true).set_user_timeout(2 * url.timeout);
        let with_settings = |node: ConnectionInfo| node.set_tcp_settings(settings.clone());
        let nodes: Vec<ConnectionInfo> = url.nodes()?.into_iter().map(with_settings).collect();
        // WAIT holds up what is behind it on its connection.
        let response = url.timeout + url.wait.map_or(Duration::ZERO, |wait| wait.timeout);
        let connecting = async {
            Ok::<_, RedisError>(match nodes.first() {
                Some(node) if !url.is_cluster() => {
                    let config = ConnectionManagerConfig::new()
                        .set_connection_timeout(Some(url.timeout))
                        .set_response_timeout(Some(response))
                        .set_min_delay(FIRST_RETRY)
                        .set_max_delay(LAST_RETRY)
                        .set_number_of_retries(3);
                    Connections::Single(ConnectionManager::new_with_config(Client::open(node.clone())?, config).await?)
                }
                _ => {
                    let client = ClusterClient::builder(nodes.clone())
                        .connection_timeout(url.timeout)
                        .response_timeout(response)
                        .tcp_settings(settings.clone())
                        .min_retry_wait(FIRST_RETRY.as_millis() as u64)
                        .max_retry_wait(LAST_RETRY.as_millis() as u64)
                        .retries(3)
                        .build()?;
                    Connections::Cluster(client.get_async_connection().await?)
                }
            })
        };
        let connections = timeout(4 * url.timeout, connecting).await.unwrap_or_else(|_| Err(too_late()))?;
        Ok(Self { connections, nodes, timeout: 2 * response, wait: url.wait })
    }

    /// Runs a script.
    pub(super) async fn run<T: FromRedisValue>(&self, call: Call<'_>) -> Result<T, Fault> {
        let running = async {
            match self.send(call.by_hash()).await {
                Err(error) if error.code() == Some("NOSCRIPT") => self.send(&call.by_code()).await,
                answer => answer,
            }
        };
        let answer = timeout(self.timeout, running).await.unwrap_or_else(|_| Err(too_late()))?;
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    /// The same for a script that changes something that must outlive a failover of Redis, as far as `wait_replicas` says.
    pub(super) async fn run_durably<T: FromRedisValue>(&self, call: Call<'_>) -> Result<T, Fault> {
        let Some(wait) = self.wait else { return self.run(call).await };
        let running = async {
            let key = call.key().to_vec();
            match self.send_and_wait(call.by_hash(), &key, wait).await {
                Err(error) if error.code() == Some("NOSCRIPT") => self.send_and_wait(&call.by_code(), &key, wait).await,
                answer => answer,
            }
        };
        let (answer, got) = timeout(self.timeout, running).await.unwrap_or_else(|_| Err(too_late()))?;
        if got < wait.replicas {
            return Err(Fault::Unreplicated { got, asked: wait.replicas });
        }
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    /// Runs a script over a connection of its own.
    pub(super) async fn run_on<T: FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
        call: Call<'_>,
    ) -> Result<T, Fault> {
        let answer = match connection.send_packed_command(call.by_hash()).await?.extract_error() {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                connection.send_packed_command(&call.by_code()).await?.extract_error()?
            }
            answer => answer?,
        };
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    /// Runs a command that reads.
    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Fault> {
        let answer = timeout(self.timeout, self.send(command)).await.unwrap_or_else(|_| Err(too_late()))?;
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        let answer = match &self.connections {
            Connections::Single(connection) => connection.clone().send_packed_command(command).await,
            Connections::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        };
        answer?.extract_error()
    }

    /// Both go over one connection, on which WAIT is about what came before it.
    async fn send_and_wait(&self, command: &Cmd, key: &[u8], wait: Wait) -> Result<(Value, u32), RedisError> {
        let mut both = Pipeline::with_capacity(2);
        both.add_command(command.clone());
        both.cmd("WAIT").arg(wait.replicas).arg(wait.timeout.as_millis() as u64);
        let answers = match &self.connections {
            Connections::Single(connection) => connection.clone().send_packed_commands(&both, 0, 2).await?,
            Connections::Cluster(connection) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                connection.clone().route_pipeline(both, 0, 2, route).await?
            }
        };
        let mut answers = answers.into_iter().map(Value::extract_error);
        let mut next = || answers.next().unwrap_or_else(|| Err((ErrorKind::Client, "an answer is missing").into()));
        let answer = next()?;
        Ok((answer, redis::from_redis_value(next()?)?))
    }

    /// A connection for calls that block for so long, to the node that has `key` now.
    pub(super) async fn dedicated(&self, key: &str, block: Duration) -> Result<MultiplexedConnection, Fault> {
        let missing = || RedisError::from((ErrorKind::InvalidClientConfig, "no node is known"));
        let any = self.nodes.first().ok_or_else(missing)?;
        let node = match &self.connections {
            Connections::Single(_) => any.clone(),
            Connections::Cluster(connection) => {
                let (host, port) = owner_of(key, &mut connection.clone()).await?;
                any.clone().set_addr(at(any.addr(), host, port))
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(block + self.timeout));
        Ok(Client::open(node)?.get_multiplexed_async_connection_with_config(&config).await?)
    }
}

/// A slot's range and its nodes, the master first.
type Slots = Vec<(u16, u16, (String, u16))>;

/// Asks the cluster which node has the slot of a key.
async fn owner_of(key: &str, connection: &mut ClusterConnection) -> Result<(String, u16), RedisError> {
    let anyone = || RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
    let mut ask = async |command: &mut Cmd| connection.route_command(command.take(), anyone()).await?.extract_error();
    let slot: u16 = redis::from_redis_value(ask(redis::cmd("CLUSTER").arg("KEYSLOT").arg(key)).await?)?;
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(ask(redis::cmd("CLUSTER").arg("SLOTS")).await?)?;
    let mut slots = Slots::new();
    for range in ranges {
        let mut parts = range.into_iter();
        if let (Some(first), Some(last), Some(Value::Array(master))) = (parts.next(), parts.next(), parts.next()) {
            let mut master = master.into_iter();
            if let (Some(host), Some(port)) = (master.next(), master.next()) {
                let place = (redis::from_redis_value(host)?, redis::from_redis_value(port)?);
                slots.push((redis::from_redis_value(first)?, redis::from_redis_value(last)?, place));
            }
        }
    }
    let owner = slots.into_iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
    owner.map(|(.., place)| place).ok_or_else(|| (ErrorKind::Client, "no node of the cluster has the slot").into())
}

/// The same kind of address at another place.
fn at(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

fn too_late() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}
