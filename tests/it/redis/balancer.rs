//! A load balancer for connections, as a Kubernetes Service is one: each new connection goes to the next server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(super) struct Balancer {
    pub(super) addr: SocketAddr,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
    _accepting: JoinSet<()>,
}

impl Balancer {
    pub(super) async fn start(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(servers));
        let accepting = accept(listener, Arc::clone(&servers));
        Self { addr, servers, _accepting: JoinSet::from_iter([accepting]) }
    }

    /// New connections go to these servers from now on. Open ones stay.
    pub(super) fn set(&self, servers: Vec<SocketAddr>) {
        *self.servers.lock().unwrap() = servers;
    }
}

async fn accept(listener: TcpListener, servers: Arc<Mutex<Vec<SocketAddr>>>) {
    let next = AtomicUsize::new(0);
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let server = {
            let servers = servers.lock().unwrap();
            servers[next.fetch_add(1, Ordering::Relaxed) % servers.len()]
        };
        connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(server).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
