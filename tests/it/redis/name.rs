//! A name that stands for one server after another, as a virtual address, a DNS entry or a proxy does.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::server::RedisServer;

/// A proxy that takes new connections to the server that the name stands for at that time. Those that are open stay with theirs.
pub(super) struct Name {
    addr: SocketAddr,
    backend: Arc<AtomicU16>,
    /// Connections to this server pass nothing on, and stay open.
    stalled: watch::Sender<Stalled>,
    accepting: JoinHandle<()>,
}

/// The port of the server whose connections are stalled.
type Stalled = Option<u16>;

impl Name {
    pub(super) async fn of(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let backend = Arc::new(AtomicU16::new(server.port));
        let (stalled, watched) = watch::channel(None);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&backend), watched));
        Self { addr, backend, stalled, accepting }
    }

    /// Makes it stand for another server.
    pub(super) fn point_to(&self, server: &RedisServer) {
        self.backend.store(server.port, Ordering::Relaxed);
    }

    /// Lets nothing through between clients and this server, in either direction; connections stay open, as with a network
    /// that loses all packets.
    pub(super) fn stall(&self, server: &RedisServer) {
        self.stalled.send_replace(Some(server.port));
    }

    /// Ends the stall. What was held up goes through.
    pub(super) fn resume(&self) {
        self.stalled.send_replace(None);
    }

    /// The URL of a registry in the server behind it.
    pub(super) fn url(&self, parameters: &str) -> String {
        format!("redis://{}/?{parameters}", self.addr)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, backend: Arc<AtomicU16>, stalled: watch::Receiver<Stalled>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let port = backend.load(Ordering::Relaxed);
        let stalled = stalled.clone();
        connections.spawn(async move {
            // A server that is gone ends the client's connection.
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::select! {
                _ = pass(from_client, to_server, port, stalled.clone()) => {}
                _ = pass(from_server, to_client, port, stalled) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what comes, until either end closes.
async fn pass(
    from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    port: u16,
    mut stalled: watch::Receiver<Stalled>,
) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let Ok(_) = stalled.wait_for(|stalled| *stalled != Some(port)).await else { return Ok(()) };
        from.readable().await?;
        // It may have been stalled while nothing came.
        if *stalled.borrow() == Some(port) {
            continue;
        }
        let count = match from.try_read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&bytes[..count]).await?;
    }
}
