//! A way to Redis that can be shut, and lets through later what was sent meanwhile.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::server::RedisServer;

/// More than a test sends through a gate that is shut.
const MOST_HELD: usize = 64 << 20;

/// A proxy in front of one server. What clients send while it is shut reaches the server when it opens, though they may have
/// closed their connections by then.
pub(super) struct Gate {
    addr: SocketAddr,
    is_open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Gate {
    pub(super) async fn before(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (is_open, opens) = watch::channel(true);
        let accepting = tokio::spawn(accept(listener, server.port, opens));
        Self { addr, is_open, accepting }
    }

    pub(super) fn shut(&self) {
        self.is_open.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// The URL of a registry in the server behind it.
    pub(super) fn url(&self, parameters: &str) -> String {
        format!("redis://{}/?{parameters}", self.addr)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, port: u16, opens: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let opens = opens.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            // The server may close the connection only when it has read everything.
            let (_, _) = tokio::join!(pass(from_client, to_server, opens), answer(from_server, to_client));
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what a client sends, whenever the gate is open.
async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut opens: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut held, mut is_over) = (Vec::new(), false);
    while !is_over || !held.is_empty() {
        tokio::select! {
            is_open = async { opens.wait_for(|is_open| *is_open).await.is_ok() }, if !held.is_empty() => {
                if !is_open {
                    return Ok(());
                }
                to.write_all(&held).await?;
                held.clear();
            }
            read = from.read_buf(&mut held), if !is_over => {
                is_over = !matches!(read, Ok(1..));
                assert!(held.len() < MOST_HELD, "a client sends on and on");
            }
        }
    }
    to.shutdown().await
}

/// Passes on what the server answers, and reads on when the client is gone.
async fn answer(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match from.read(&mut bytes).await? {
            0 => return Ok(()),
            count => drop(to.write_all(&bytes[..count]).await),
        }
    }
}
