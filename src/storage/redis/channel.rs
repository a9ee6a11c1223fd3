//! One connection to the server that owns a partition, replaced whenever it is of no more use.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection};
use tokio::{sync::OnceCell, time::Instant};

use super::{fault::Fault, servers::Servers};

/// How long callers are told that a connection failed before the next one is tried.
const PAUSE: Duration = Duration::from_millis(20);

/// See the [module](self).
pub(super) struct Channel {
    servers: Arc<Servers>,
    /// A key of the partition. Whichever server has it owns the partition.
    key: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connected by the first caller that needs it; the others wait for that.
    link: Arc<OnceCell<Link>>,
    failed: Option<(Instant, Fault)>,
}

/// A connection, and the server at its other end.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// Redis' run_id, which is new each time a server starts.
    pub(super) server: Arc<str>,
    number: u64,
}

impl Channel {
    pub(super) fn new(servers: Arc<Servers>, key: String) -> Self {
        Self { servers, key, state: Mutex::default() }
    }

    /// Returns the connection, and makes one if there is none. `newest` is the server that the partition's newest
    /// connection leads to. A connection to any other server is given up, because a name may lead to another server by
    /// now.
    ///
    /// Cancellation safe: another caller carries on.
    pub(super) async fn link(&self, newest: &Newest) -> Result<Link, Fault> {
        let mut made = false;
        loop {
            let cell = {
                let state = self.state.lock();
                match &state.failed {
                    Some((when, fault)) if when.elapsed() < PAUSE => return Err(fault.clone()),
                    _ => Arc::clone(&state.link),
                }
            };
            let connecting = cell.get_or_try_init(async || {
                made = true;
                let (connection, server) = self.servers.connect(&self.key).await?;
                Ok(Link { connection, number: newest.arrived(&server), server })
            });
            match connecting.await {
                Ok(link) if made || newest.is(&link.server) => return Ok(link.clone()),
                Ok(link) => self.discard(link),
                Err(fault) => {
                    self.state.lock().failed = Some((Instant::now(), Fault::clone(&fault)));
                    return Err(fault);
                }
            }
        }
    }

    /// Gives up a connection, so that the next caller makes another.
    pub(super) fn discard(&self, link: &Link) {
        let mut state = self.state.lock();
        if state.link.get().is_some_and(|current| current.number == link.number) {
            state.link = Arc::default();
        }
    }
}

impl Link {
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.connection.clone().send_packed_command(command).await?.extract_error()
    }

    /// Returns the answers of a pipeline, each of which may be an error.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.connection.clone().send_packed_commands(commands, 0, commands.len()).await
    }
}

/// The server that the partition's newest connection leads to.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<(u64, Option<Arc<str>>)>);

impl Newest {
    /// Records that a connection to `server` was made, and numbers it.
    pub(super) fn arrived(&self, server: &Arc<str>) -> u64 {
        let mut newest = self.0.lock();
        newest.0 += 1;
        newest.1 = Some(Arc::clone(server));
        newest.0
    }

    /// Makes every connection be replaced.
    pub(super) fn forget(&self) {
        self.0.lock().1 = None;
    }

    pub(super) fn is(&self, server: &Arc<str>) -> bool {
        self.0.lock().1.as_ref() == Some(server)
    }
}
