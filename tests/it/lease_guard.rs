//! The client's leases against the real server, over a network that can fail on demand.

use std::{
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use sessiond::{
    client::{Client, ClientError, Lease, LeaseEvent, LeaseEvents, Watch, WatchOptions, WatchUpdate},
    server::{Server, ServerError},
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::{
    fake::{nowhere, soon},
    server::config,
};

/// The shortest ttl that the server accepts.
const TTL: Duration = Duration::from_secs(1);

/// A server in this process with an empty memory storage.
pub(crate) struct Registry {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    pub(crate) async fn listen(listen: SocketAddr) -> Self {
        let config = config().listen(listen).workers(NonZeroUsize::MIN).drain_timeout(Duration::from_secs(10));
        let server = Server::bind(config).await.unwrap();
        let addr = server.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async { drop(stopped.await) }));
        Self { addr, stop, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect_lazy(&self.url()).unwrap()
    }

    /// Stops the server. Returns its address.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.stop.send(()).unwrap();
        soon(self.task).await.unwrap().unwrap();
        self.addr
    }
}

/// A TCP relay between a gateway and its registry.
pub(crate) struct Network {
    addr: SocketAddr,
    is_cut: watch::Sender<bool>,
    stalls: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Network {
    pub(crate) async fn before(registry: &Registry) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (is_cut, cut) = watch::channel(false);
        let (stalls, stall) = watch::channel(());
        let task = tokio::spawn(relay(listener, registry.addr, cut, stall));
        Self { addr, is_cut, stalls, task }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect_lazy(&format!("http://{}", self.addr)).unwrap()
    }

    /// Closes all connections, and every new one as soon as it is accepted.
    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.is_cut.send_replace(false);
    }

    /// Stops carrying bytes over the existing connections, without closing them. New connections work.
    fn stall(&self) {
        self.stalls.send_replace(());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(listener: TcpListener, to: SocketAddr, cut: watch::Receiver<bool>, stall: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let (mut cut, mut stall) = (cut.clone(), stall.clone());
        stall.mark_unchanged();
        connections.spawn(async move {
            let carry = async {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    // The ends of the connection handle its errors.
                    carried = copy_bidirectional(&mut near, &mut far) => drop(carried),
                    // An error means that the test is over.
                    Ok(()) = stall.changed() => pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = cut.wait_for(|is_cut| *is_cut) => {}
                () = carry => {}
            }
        });
    }
}

fn sessions(count: i64) -> Vec<SessionKey> {
    (0..count).map(|id| SessionKey::new(7, id)).collect()
}

/// Starts a watch and waits until it is subscribed, so that it reports every later change.
async fn observer(client: &Client) -> Watch {
    let mut watch = client.watch(WatchOptions::default());
    let update = soon(watch.next()).await.unwrap();
    assert!(matches!(update, WatchUpdate::Subscribed { .. }), "{update:?}");
    watch
}

/// Asserts that the observer's next events report the same change for each of these sessions, in any order.
async fn assert_all(watch: &mut Watch, sessions: &[SessionKey], change: SessionChange) {
    let mut received = Vec::new();
    while received.len() < sessions.len() {
        if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap() {
            received.extend(events);
        }
    }
    received.sort_by_key(|event| event.session);
    let expected: Vec<_> = sessions.iter().map(|&session| SessionEvent::new(session, change, None)).collect();
    assert_eq!(received, expected);
}

const REVOKED: SessionChange = SessionChange::Destroyed(DestroyReason::LeaseRevoked);
const EXPIRED: SessionChange = SessionChange::Destroyed(DestroyReason::LeaseExpired);

async fn next(events: &mut LeaseEvents) -> LeaseEvent {
    soon(events.next()).await.expect("the lease is not dropped")
}

/// Waits for the next lease, which may follow the loss of the one before. Returns its id.
async fn regranted(events: &mut LeaseEvents) -> LeaseId {
    loop {
        match next(events).await {
            LeaseEvent::Lost => {}
            LeaseEvent::Regranted(lease) => return lease,
            event => panic!("{event:?}"),
        }
    }
}

#[test]
fn leases_are_sync_and_their_events_are_send() {
    fn is_shared<T: Send + Sync + 'static>() {}
    fn moves<T: Clone + Send + 'static>() {}
    is_shared::<Lease>();
    moves::<LeaseEvents>();
    moves::<LeaseEvent>();
}

#[tokio::test]
async fn a_held_lease_is_kept_alive_and_revoked_when_dropped() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.lease(TTL, "gateway").await.unwrap();
    let mut events = lease.events();
    let held = sessions(3);
    assert_eq!(client.batch_create_under(&held, lease.id()).await.unwrap(), [true; 3]);
    assert_eq!(timeout(TTL * 3, events.next()).await.ok(), None, "the lease has no events");
    assert_eq!(client.batch_has(&held).await.unwrap(), [true; 3]);

    let mut observer = observer(&client).await;
    drop(lease);
    assert_eq!(soon(events.next()).await, None);
    assert_all(&mut observer, &held, REVOKED).await;
}

#[tokio::test]
async fn revoking_a_lease_returns_how_many_sessions_ended() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.lease(TTL, "gateway").await.unwrap();
    let id = lease.id();
    client.batch_create_under(&sessions(3), id).await.unwrap();
    assert!(client.create(SessionKey::new(1, 1)).await.unwrap());
    let mut events = lease.events();
    assert_eq!(lease.revoke().await.unwrap(), 3);
    assert_eq!(soon(events.next()).await, None);
    for error in [
        client.keep_lease_alive(id).await.unwrap_err(),
        client.revoke_lease(id).await.unwrap_err(),
        client.create_under(SessionKey::new(1, 2), id).await.unwrap_err(),
        client.batch_create_under(&sessions(1), id).await.unwrap_err(),
    ] {
        assert!(error.is_lease_gone() && !error.is_retryable(), "{error}");
    }
    assert!(!client.destroy_under(SessionKey::new(1, 1), id).await.unwrap());
    assert!(client.has(SessionKey::new(1, 1)).await.unwrap());
}

#[tokio::test]
async fn granting_fails_for_a_bad_ttl_or_an_unreachable_server() {
    let registry = Registry::start().await;
    let error = registry.client().lease(TTL / 2, "gateway").await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("BAD_DURATION"), "{error}");
    let unreachable = Client::connect_lazy(&nowhere().await).unwrap();
    let error = soon(unreachable.lease(TTL, "gateway")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_lease_that_is_revoked_elsewhere_is_granted_again() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.lease(TTL, "gateway").await.unwrap();
    let (first, mut events) = (lease.id(), lease.events());
    let held = sessions(3);
    client.batch_create_under(&held, first).await.unwrap();
    let mut observer = observer(&client).await;
    assert_eq!(client.revoke_lease(first).await.unwrap(), 3);
    assert_all(&mut observer, &held, REVOKED).await;

    let second = regranted(&mut events).await;
    assert_ne!(second, first);
    assert_eq!((lease.id(), lease.is_held()), (second, true));
    assert_eq!(client.batch_create_under(&held, second).await.unwrap(), [true; 3]);
    assert_all(&mut observer, &held, SessionChange::Created).await;
    // A caller that starts to listen later also receives this event.
    assert_eq!(next(&mut lease.events()).await, LeaseEvent::Regranted(second));
    assert_eq!(lease.revoke().await.unwrap(), 3);
}

#[tokio::test]
async fn sessions_can_be_registered_again_in_a_registry_that_lost_its_memory() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.lease(TTL, "gateway").await.unwrap();
    let mut events = lease.events();
    let held = sessions(1000);
    client.batch_create_under(&held, lease.id()).await.unwrap();
    let registry = Registry::listen(registry.stop().await).await;
    let second = regranted(&mut events).await;
    assert!(client.batch_create_under(&held, second).await.unwrap().iter().all(|&created| created));
    assert!(registry.client().batch_has(&held).await.unwrap().iter().all(|&exists| exists));
    assert_eq!(lease.revoke().await.unwrap(), 1000);
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_loses_its_lease_and_gets_a_new_one() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let gateway = network.client();
    let lease = gateway.lease(TTL, "gateway").await.unwrap();
    let mut events = lease.events();
    let held = sessions(3);
    gateway.batch_create_under(&held, lease.id()).await.unwrap();
    let mut observer = observer(&registry.client()).await;
    network.cut();
    assert_eq!(next(&mut events).await, LeaseEvent::Lost);
    assert!(!lease.is_held());
    assert_all(&mut observer, &held, EXPIRED).await;

    network.mend();
    let second = regranted(&mut events).await;
    assert_eq!(gateway.batch_create_under(&held, second).await.unwrap(), [true; 3]);
    assert_all(&mut observer, &held, SessionChange::Created).await;
}

#[tokio::test]
async fn a_lease_that_survives_a_cut_is_recovered() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let gateway = network.client();
    let lease = gateway.lease(TTL, "gateway").await.unwrap();
    let (first, mut events) = (lease.id(), lease.events());
    gateway.create_under(SessionKey::new(0, 1), first).await.unwrap();
    network.cut();
    // Keep the lease alive, as the registry would after an outage of its own.
    let nearby = registry.client();
    let living_on = tokio::spawn(async move {
        let mut turn = tokio::time::interval(TTL / 5);
        loop {
            turn.tick().await;
            nearby.keep_lease_alive(first).await.unwrap();
        }
    });
    assert_eq!(next(&mut events).await, LeaseEvent::Lost);
    network.mend();
    assert_eq!(next(&mut events).await, LeaseEvent::Recovered);
    living_on.abort();
    assert_eq!((lease.id(), lease.is_held()), (first, true));
    assert_eq!(lease.revoke().await.unwrap(), 1);
}

#[tokio::test]
async fn a_connection_that_dies_silently_does_not_lose_the_lease() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let gateway = network.client();
    let ttl = TTL * 2;
    let lease = gateway.lease(ttl, "gateway").await.unwrap();
    let mut events = lease.events();
    for _ in 0..2 {
        network.stall();
        assert_eq!(timeout(ttl * 3 / 2, events.next()).await.ok(), None, "the client reconnects in time");
    }
}

#[tokio::test]
async fn the_old_lease_cannot_destroy_a_session_that_moved() {
    let registry = Registry::start().await;
    let client = registry.client();
    let old = client.lease(TTL * 60, "old").await.unwrap();
    let new = client.lease(TTL * 60, "new").await.unwrap();
    let moved = sessions(2);
    assert_eq!(client.batch_create_under(&moved, old.id()).await.unwrap(), [true; 2]);
    let mut observer = observer(&client).await;
    assert!(!client.create_under(moved[0], new.id()).await.unwrap());
    assert_eq!(client.batch_create_under(&moved[1..], new.id()).await.unwrap(), [false]);
    assert!(!client.destroy_under(moved[0], old.id()).await.unwrap());
    assert_eq!(client.batch_destroy_under(&moved, old.id()).await.unwrap(), [false; 2]);
    assert_eq!(old.revoke().await.unwrap(), 0);
    assert_eq!(client.batch_has(&moved).await.unwrap(), [true; 2]);
    assert!(client.destroy_under(moved[0], new.id()).await.unwrap());
    // The observer received no event before this one.
    assert_all(&mut observer, &moved[..1], SessionChange::Destroyed(DestroyReason::Requested)).await;
    assert_eq!(new.revoke().await.unwrap(), 1);
}

#[tokio::test]
async fn revoking_a_lease_times_out_if_the_server_does_not_answer() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let after = Duration::from_millis(500);
    let gateway = Client::builder(&format!("http://{}", network.addr)).unwrap().timeout(after).connect_lazy().unwrap();
    let lease = gateway.lease(TTL * 60, "gateway").await.unwrap();
    network.stall();
    let begun = Instant::now();
    let error = soon(lease.revoke()).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(begun.elapsed() >= after, "{:?}", begun.elapsed());
}
