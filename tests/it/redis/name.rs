//! A name that stands for one server after another, like a virtual address, a DNS entry or a proxy.

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

/// A proxy that sends each new connection to the server that the name stands for at that time. Open connections stay
/// with their server.
pub(super) struct Name {
    addr: SocketAddr,
    backend: Arc<AtomicU16>,
    /// The server whose connections are stalled: they stay open but pass nothing on.
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

    /// Makes the name stand for another server.
    pub(super) fn point_to(&self, server: &RedisServer) {
        self.backend.store(server.port, Ordering::Relaxed);
    }

    /// Passes nothing between clients and this server, in either direction. Connections stay open, as in a network that
    /// drops all packets.
    pub(super) fn stall(&self, server: &RedisServer) {
        self.stalled.send_replace(Some(server.port));
    }

    /// Ends the stall. The bytes held back are passed on.
    pub(super) fn resume(&self) {
        self.stalled.send_replace(None);
    }

    /// Returns the URL of a registry in the server behind the name.
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
            // If the server is gone, the client's connection ends.
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

/// Copies bytes until either end closes.
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
        // The stall may have begun while no bytes arrived.
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
