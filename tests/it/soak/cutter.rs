//! A TCP relay that cuts every connection after a random number of bytes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// The relay. Dropping it cuts all connections.
pub(crate) struct Cutter {
    pub(crate) addr: SocketAddr,
    accepts: JoinHandle<()>,
}

impl Cutter {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepts = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(async move {
                    // While the server is down, the client is cut off immediately.
                    if let Ok(server) = TcpStream::connect(to).await {
                        carry(client, server).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, accepts }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

/// Relays a random number of the server's bytes, then closes the connection to the client.
async fn carry(client: TcpStream, server: TcpStream) {
    let ((mut from_client, mut to_client), (from_server, mut to_server)) = (client.into_split(), server.into_split());
    let mut from_server = from_server.take(fastrand::u64(500..500_000));
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
    let _ = to_client.shutdown().await;
}
