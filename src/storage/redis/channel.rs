//! A connection to the server that owns a partition. It is replaced when it fails or when another server owns the
//! partition.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{OnceCell, watch},
    time::Instant,
};

use super::{
    fault::Fault,
    servers::{Connected, Servers},
    term::Term,
};

/// After a failed attempt to connect, callers get the same error for this long, until the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// See the [module](self).
pub(super) struct Channel {
    servers: Arc<Servers>,
    /// A key of the partition. The server that has this key owns the partition.
    key: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first caller that needs a connection makes it. The others wait.
    link: Arc<OnceCell<Link>>,
    failed: Option<(Instant, Fault)>,
}

/// A connection, and the server at its other end.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// Redis' run_id, which changes each time the server starts.
    pub(super) server: Arc<str>,
    /// No answer that arrives after its end is believed.
    term: Term,
    number: u64,
}

impl Channel {
    pub(super) fn new(servers: Arc<Servers>, key: String) -> Self {
        Self { servers, key, state: Mutex::default() }
    }

    /// Returns the connection. Makes one if there is none.
    ///
    /// `newest` is the server that the partition's newest connection goes to. A connection to any other server is
    /// replaced, because the host name may resolve to another server by now.
    ///
    /// Cancel safe: if one caller's future is dropped, another caller makes the connection.
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
                let Connected { connection, server, term } = self.servers.connect(&self.key).await?;
                Ok(Link { connection, number: newest.note(&server), server, term })
            });
            match connecting.await {
                Ok(link) if !link.term.is_over() && (made || newest.is(&link.server)) => return Ok(link.clone()),
                Ok(link) => self.discard(link),
                Err(fault) => {
                    self.state.lock().failed = Some((Instant::now(), Fault::clone(&fault)));
                    return Err(fault);
                }
            }
        }
    }

    /// Drops a connection, so that the next caller makes a new one.
    pub(super) fn discard(&self, link: &Link) {
        let mut state = self.state.lock();
        if state.link.get().is_some_and(|current| current.number == link.number) {
            state.link = Arc::default();
        }
    }
}

impl Link {
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        self.term.within(connection.send_packed_command(command)).await?.extract_error()
    }

    /// Sends a pipeline. Returns its answers, each of which may be an error.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        self.term.within(connection.send_packed_commands(commands, 0, commands.len())).await
    }
}

/// The number of the partition's newest connection, and the server that it goes to.
#[derive(Debug, Default)]
pub(super) struct Newest(watch::Sender<(u64, Option<Arc<str>>)>);

impl Newest {
    /// Records a new connection to `server`. Returns the connection's number.
    pub(super) fn note(&self, server: &Arc<str>) -> u64 {
        let mut number = 0;
        self.0.send_if_modified(|newest| {
            newest.0 += 1;
            number = newest.0;
            newest.1.replace(Arc::clone(server)).as_ref() != Some(server)
        });
        number
    }

    /// Forces the replacement of every connection of the partition.
    pub(super) fn forget(&self) {
        self.0.send_if_modified(|newest| newest.1.take().is_some());
    }

    pub(super) fn is(&self, server: &Arc<str>) -> bool {
        self.0.borrow().1.as_ref() == Some(server)
    }

    /// Waits until this is another server.
    pub(super) async fn is_no_longer(&self, server: &Arc<str>) {
        // Cannot fail, because `self` has the sender.
        let _ = self.0.subscribe().wait_for(|newest| newest.1.as_ref() != Some(server)).await;
    }
}
