//! Gateways: registering the sessions of connected clients, and keeping them registered.

mod book;
mod connection;
mod hints;
mod rounds;

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::select;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout_at},
};

pub use self::connection::{CloseReason, Connection};
use self::{book::Book, connection::Signal, rounds::Rounds};
use super::{Client, ClientError, Lease};
use crate::session::{LeaseId, SessionKey};

const DEFAULT_TTL: Duration = Duration::from_secs(30);
const DEFAULT_LINGER: Duration = Duration::from_secs(30);
/// How many calls over a dead connection fit into the time that `connect` may take.
const TRIES: u32 = 3;

/// The options of a [`Gateway`]. A string is the owner, with the defaults for everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct GatewayOptions {
    /// The owner of the gateway's lease: by convention the address at which the gateway can be reached. At most 128
    /// bytes.
    pub owner: String,
    /// How long the registry keeps the sessions of a gateway that it does not hear from: 1 s to 24 h, 30 s by default.
    pub ttl: Duration,
    /// How long the sessions stay after the gateway is stopped, so that their clients can move to other gateways: at
    /// most 1 h, 30 s by default. 0 ends them at once.
    pub linger: Duration,
}

impl GatewayOptions {
    /// Returns the defaults for a gateway with this owner.
    pub fn new(owner: impl Into<String>) -> Self {
        Self { owner: owner.into(), ttl: DEFAULT_TTL, linger: DEFAULT_LINGER }
    }

    /// Sets how long the registry keeps the sessions of a gateway that it does not hear from.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long the sessions stay after the gateway is stopped.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }
}

impl<T: Into<String>> From<T> for GatewayOptions {
    fn from(owner: T) -> Self {
        Self::new(owner)
    }
}

/// A gateway's part of the registry: the sessions of the clients that are connected to it. Created by
/// [`Client::gateway`].
///
/// ```no_run
/// # use sessiond::{client::{Client, ClientError}, session::SessionKey};
/// # async fn serve_client() {}
/// # async fn example() -> Result<(), ClientError> {
/// let client = Client::connect_lazy("http://127.0.0.1:50051")?;
/// let gateway = client.gateway("10.0.0.2:443").await?;
///
/// // For each client that connects:
/// let connection = gateway.connect(SessionKey::new(0, 42)).await?;
/// tokio::select! {
///     () = serve_client() => {}
///     reason = connection.closed() => println!("closing the connection: {reason:?}"),
/// }
/// drop(connection);
///
/// gateway.stop().await
/// # }
/// ```
///
/// # What it does
///
/// - It holds a [`Lease`], and gets a new one if it loses it.
/// - [`connect`](Self::connect) registers a session under the lease, and takes it over from the gateway that the client
///   was connected to before. A call that is delayed never takes a session back from a newer connection.
/// - Dropping the [`Connection`] destroys the session, unless the client has another connection to this gateway or has
///   moved to another one.
/// - [`Connection::closed`] returns as soon as the session has moved to another gateway or was destroyed by someone
///   else.
/// - Connections stay open while the registry cannot be reached. If the lease was lost meanwhile, their sessions are
///   registered again, and the connections of those that have moved are closed.
/// - It compares the sessions under its lease with its connections, and destroys sessions that a late call has created.
/// - [`stop`](Self::stop) lets the sessions linger. If a client moves to another gateway in that time, no observer sees
///   its session disappear. Dropping the gateway does the same in the background.
///
/// # Concurrency and memory
///
/// All methods take `&self`. Clones are cheap and share the gateway, which is stopped when the last one is dropped;
/// connections do not keep it running. One task makes all calls about sessions, in batches of up to 4,096, over one
/// connection. A gateway takes a few hundred bytes for each connection, and nothing for clients that have left.
#[derive(Clone, Debug)]
pub struct Gateway {
    handle: Arc<Handle>,
}

/// What the clones of a gateway share. Dropping it stops the gateway.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    timeout: Duration,
    /// Closed when the gateway's task has ended.
    ended: watch::Receiver<()>,
}

/// What the gateway, its connections and its task share.
#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// Wakes the task.
    work: Notify,
    /// The error of the call that was to make the lease linger.
    failure: Mutex<Option<ClientError>>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.work.notify_one();
    }

    async fn woken(&self) {
        self.work.notified().await;
    }
}

impl Client {
    /// Grants a lease and returns a gateway that registers sessions under it.
    ///
    /// Pass the gateway's owner, which is by convention its address, or [`GatewayOptions`]. The gateway opens
    /// connections of its own.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a lease that was already granted expires after its ttl.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the lease cannot be granted. This is not retried.
    pub async fn gateway(&self, options: impl Into<GatewayOptions>) -> Result<Gateway, ClientError> {
        let GatewayOptions { owner, ttl, linger } = options.into();
        let lease = self.lease(ttl, &owner).await?;
        let shared = Arc::new(Shared {
            book: Mutex::new(Book::new(lease.id())),
            work: Notify::new(),
            failure: Mutex::default(),
        });
        let (ends, ended) = watch::channel(());
        // The task ends with the `Handle`, which stops the gateway when it is dropped.
        let task = run(Arc::clone(&shared), lease, self.clone(), linger);
        tokio::spawn(async move {
            task.await;
            drop(ends);
        });
        Ok(Gateway { handle: Arc::new(Handle { shared, timeout: self.timeout, ended }) })
    }
}

impl Gateway {
    /// Registers the session of a client that has just connected, and returns its connection.
    ///
    /// If the client was connected to another gateway, or has older connections to this one that it has since left for
    /// another gateway, those connections are closed. Other connections of the same session to this gateway stay.
    ///
    /// This waits while the registry cannot be reached, but not longer than the client's timeout.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the session is closed like that of any other connection.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::SessionElsewhere`] if the client has connected to another gateway in the meantime: close
    /// the connection. [`ClientError::Timeout`] if the session could not be registered within the client's timeout,
    /// [`ClientError::GatewayStopped`] after [`stop`](Self::stop), and other errors only if they are not
    /// [retryable](ClientError::is_retryable). In each case the session is not registered here.
    pub async fn connect(&self, session: SessionKey) -> Result<Connection, ClientError> {
        let since = Instant::now();
        let (reply, answer) = oneshot::channel();
        let signal = Arc::<Signal>::default();
        let shared = Arc::clone(&self.handle.shared);
        shared.book().open(session, Arc::clone(&signal), since, reply);
        // Closes the session if this future is dropped.
        let connection = Connection { shared, session, signal };
        connection.shared.wake();
        let after = self.handle.timeout;
        match timeout_at(since + after, answer).await {
            Ok(Ok(answer)) => answer.map(|()| connection),
            // The task ended with the runtime that the gateway was created in.
            Ok(Err(_)) => Err(ClientError::GatewayStopped),
            Err(_) => Err(ClientError::Timeout { after }),
        }
    }

    /// Returns the id of the gateway's lease. It changes when the gateway loses its lease.
    #[must_use]
    pub fn lease_id(&self) -> LeaseId {
        self.handle.shared.book().lease()
    }

    /// Stops the gateway: closes all connections with [`CloseReason::Stopped`], and lets their sessions linger.
    ///
    /// Call this in an orderly shutdown, and wait for the clients to leave. Sessions whose clients reconnect to another
    /// gateway within [`GatewayOptions::linger`] move there, and no observer sees them disappear. The others end after
    /// that time. This takes no longer than a few times the client's timeout, and not as long as the linger.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the gateway still stops. Calling this again waits for the same stop.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the lease could not be made to linger. It then expires after its ttl, which gives
    /// the clients as much time to move. If several callers wait, one of them receives the error.
    pub async fn stop(&self) -> Result<(), ClientError> {
        let Handle { shared, ended, .. } = &*self.handle;
        self.handle.begin_stop();
        // Returns an error when the task drops its end.
        while ended.clone().changed().await.is_ok() {}
        shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Handle {
    fn begin_stop(&self) {
        self.shared.book().stop();
        self.shared.wake();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// Runs a gateway until it is stopped, and then lets its lease linger.
async fn run(shared: Arc<Shared>, lease: Lease, client: Client, linger: Duration) {
    {
        let calls = Client::new(client.target.clone(), client.timeout / TRIES);
        let rounds = pin!(Rounds::new(&shared, &lease, calls).run());
        let hints = pin!(hints::follow(&shared, &lease, &client));
        select(rounds, hints).await;
    }
    match lease.linger(linger).await {
        Err(error) if !error.is_lease_gone() => {
            *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        _ => {}
    }
}
