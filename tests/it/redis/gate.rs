//! A proxy in front of Redis that can hold back all commands or some of them, and passes them on later.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::server::RedisServer;

/// More than any test sends while a gate is shut.
const MOST_HELD: usize = 64 << 20;

/// A proxy in front of one server. What clients send while it is shut reaches the server when it opens, even if they
/// have closed their connections by then.
pub(super) struct Gate {
    addr: SocketAddr,
    state: watch::Sender<State>,
    /// Whether bytes have been held back since `shut_to`.
    has_held: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    Shut,
    /// Holds back bytes that contain this command.
    ShutTo(&'static str),
}

impl State {
    fn lets_through(self, bytes: &[u8]) -> bool {
        match self {
            Self::Open => true,
            Self::Shut => false,
            Self::ShutTo(command) => !bytes.windows(command.len()).any(|part| part == command.as_bytes()),
        }
    }
}

impl Gate {
    pub(super) async fn before(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (state, has_held) = (watch::Sender::new(State::Open), watch::Sender::new(false));
        let accepting = tokio::spawn(accept(listener, server.port, state.subscribe(), has_held.clone()));
        Self { addr, state, has_held, accepting }
    }

    pub(super) fn shut(&self) {
        self.state.send_replace(State::Shut);
    }

    /// Holds back a command, and waits until one has been held back.
    pub(super) async fn shut_to(&self, command: &'static str) {
        self.has_held.send_replace(false);
        self.state.send_replace(State::ShutTo(command));
        self.has_held.subscribe().wait_for(|has_held| *has_held).await.unwrap();
    }

    pub(super) fn open(&self) {
        self.state.send_replace(State::Open);
    }

    /// Returns the URL of a registry in the server behind the gate.
    pub(super) fn url(&self, parameters: &str) -> String {
        format!("redis://{}/?{parameters}", self.addr)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, port: u16, state: watch::Receiver<State>, has_held: watch::Sender<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (state, has_held) = (state.clone(), has_held.clone());
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            // The server must not close the connection before it has read everything.
            let (_, _) = tokio::join!(pass(from_client, to_server, state, has_held), answer(from_server, to_client));
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what a client sends whenever the gate is open.
async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    has_held: watch::Sender<bool>,
) -> io::Result<()> {
    let (mut held, mut is_over) = (Vec::new(), false);
    while !is_over || !held.is_empty() {
        tokio::select! {
            changed = state.changed(), if !held.is_empty() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            read = from.read_buf(&mut held), if !is_over => {
                is_over = !matches!(read, Ok(1..));
                assert!(held.len() < MOST_HELD, "a client sends without end");
            }
        }
        let lets_through = state.borrow_and_update().lets_through(&held);
        if lets_through {
            to.write_all(&held).await?;
            held.clear();
        } else {
            has_held.send_replace(true);
        }
    }
    to.shutdown().await
}

/// Passes on the server's answers, and keeps reading after the client is gone.
async fn answer(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match from.read(&mut bytes).await? {
            0 => return Ok(()),
            count => drop(to.write_all(&bytes[..count]).await),
        }
    }
}
