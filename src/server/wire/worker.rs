//! The workers: threads that serve connections, each on its own runtime.
//!
//! A runtime per thread steals no work, and wakes no other thread for a call. docs/benchmarks.md compares the cost of a
//! call with that of tonic's server on tokio's multi-threaded runtime.

use std::{
    convert::Infallible,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    connection::{Connection, Connections},
    turn::take_turns,
};
use crate::{
    server::{
        ServerError,
        lifecycle::{self, Lifecycle},
    },
    subject::relay,
    vital::Vitals,
};

/// How many accepted connections may wait for one worker.
const INLET: usize = 64;

/// The workers of a server.
pub(crate) struct Workers {
    inlets: Inlets,
    ended: mpsc::Receiver<Infallible>,
}

/// Hands connections to the workers.
#[derive(Clone)]
pub(crate) struct Inlets(Vec<Inlet>);

#[derive(Clone)]
struct Inlet {
    connections: mpsc::Sender<Connection>,
    /// How many connections the worker serves or has waiting.
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers: the first on the current runtime, the others on new threads.
    pub(crate) fn start(
        count: NonZeroUsize,
        connections: &Arc<Connections>,
        lifecycle: &watch::Sender<Lifecycle>,
        vitals: &Vitals,
    ) -> Result<Self, ServerError> {
        let (end, ended) = mpsc::channel(1);
        let mut inlets = Vec::new();
        for index in 0..count.get() {
            let (sender, inlet) = mpsc::channel(INLET);
            let worker = Worker {
                inlet,
                load: Arc::default(),
                connections: Arc::clone(connections),
                lifecycle: lifecycle.subscribe(),
                _end: end.clone(),
            };
            inlets.push(Inlet { connections: sender, load: Arc::clone(&worker.load) });
            let worker = vitals.watch("worker", worker.run());
            if index == 0 {
                tokio::spawn(worker);
            } else {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(ServerError::Worker)?;
                thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || runtime.block_on(worker))
                    .map_err(ServerError::Worker)?;
            }
        }
        Ok(Self { inlets: Inlets(inlets), ended })
    }

    pub(crate) fn inlets(&self) -> Inlets {
        self.inlets.clone()
    }

    /// Waits until every worker has ended. A worker ends when the server drains and its connections have ended, or when
    /// the server has stopped or was dropped.
    pub(crate) async fn ended(&mut self) {
        // Nothing is ever sent: the channel closes when the last worker ends.
        while self.ended.recv().await.is_some() {}
    }
}

impl Inlets {
    /// Gives a connection to the worker that has the fewest.
    pub(super) async fn give(&self, connection: Connection) {
        let Some(inlet) = self.0.iter().min_by_key(|inlet| inlet.load.load(Ordering::Relaxed)) else { return };
        inlet.load.fetch_add(1, Ordering::Relaxed);
        if inlet.connections.send(connection).await.is_err() {
            tracing::debug!("dropped a new connection because its worker has stopped");
        }
    }
}

struct Worker {
    inlet: mpsc::Receiver<Connection>,
    load: Arc<AtomicUsize>,
    connections: Arc<Connections>,
    lifecycle: watch::Receiver<Lifecycle>,
    _end: mpsc::Sender<Infallible>,
}

impl Worker {
    async fn run(mut self) {
        let mut stopped = self.lifecycle.clone();
        let mut connections = JoinSet::new();
        tokio::select! {
            () = lifecycle::reached(&mut stopped, Lifecycle::Stopped) => {}
            () = self.serve_all(&mut connections) => {}
            never = relay() => match never {},
            never = take_turns() => match never {},
        }
        connections.shutdown().await;
    }

    /// Serves incoming connections until the server drains, then waits for the remaining ones to end.
    async fn serve_all(&mut self, connections: &mut JoinSet<()>) {
        let mut draining = self.lifecycle.clone();
        loop {
            tokio::select! {
                // Remove ended connections first, so that the set does not grow.
                biased;
                Some(_) = connections.join_next() => {}
                Some(connection) = self.inlet.recv() => {
                    connections.spawn(self.serve(connection));
                }
                () = lifecycle::reached(&mut draining, Lifecycle::Draining) => break,
            }
        }
        self.inlet.close();
        while let Some(connection) = self.inlet.recv().await {
            connections.spawn(self.serve(connection));
        }
        while connections.join_next().await.is_some() {}
    }

    fn serve(&self, connection: Connection) -> impl Future<Output = ()> + Send + use<> {
        let load = Load(Arc::clone(&self.load));
        let connections = Arc::clone(&self.connections);
        let lifecycle = self.lifecycle.clone();
        async move {
            let _load = load;
            connections.serve(connection, lifecycle).await;
        }
    }
}

/// Counts a connection until it ends.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
