//! A server whose storage delays single calls, as a slow network would.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, CreateOptions, Creation, SessionStorage, StorageError,
        memory::{MemoryOptions, MemoryStorage},
    },
};
use tokio::sync::oneshot;

use crate::{
    fake::soon,
    server::{Running, config},
    twisted::{Twist, Twisted},
};

/// Delays calls of a memory storage.
#[derive(Debug)]
pub(crate) struct Delays {
    storage: Arc<MemoryStorage>,
    /// What the next create waits for, and the next destroy.
    next_create: Mutex<Option<Gate>>,
    next_destroy: Mutex<Option<Gate>>,
}

/// Where a call waits.
#[derive(Debug)]
struct Gate {
    reached: oneshot::Sender<()>,
    opens: oneshot::Receiver<()>,
}

/// A call that waits at a gate. It continues when this is dropped.
pub(crate) struct Delayed {
    reached: Option<oneshot::Receiver<()>>,
    _opens: oneshot::Sender<()>,
}

impl Delayed {
    /// Waits until the call has arrived at the gate.
    pub(crate) async fn waits(&mut self) {
        soon(self.reached.take().unwrap()).await.unwrap();
    }
}

impl Delays {
    /// Delays the next create until the returned value is dropped.
    pub(crate) fn delay_next_create(&self) -> Delayed {
        delay(&self.next_create)
    }

    /// Delays the next destroy until the returned value is dropped.
    pub(crate) fn delay_next_destroy(&self) -> Delayed {
        delay(&self.next_destroy)
    }
}

fn delay(gate: &Mutex<Option<Gate>>) -> Delayed {
    let ((reached, is_reached), (open, opens)) = (oneshot::channel(), oneshot::channel());
    *gate.lock().unwrap() = Some(Gate { reached, opens });
    Delayed { reached: Some(is_reached), _opens: open }
}

/// Makes a call after it has waited at its gate, if there is one. It is then made even if its caller has given up.
async fn pass<T: Send + 'static>(
    gate: &Mutex<Option<Gate>>,
    call: impl Future<Output = Result<T, StorageError>> + Send + 'static,
) -> Result<T, StorageError> {
    let gate = gate.lock().unwrap().take();
    let Some(Gate { reached, opens }) = gate else { return call.await };
    let late = async move {
        let _ = reached.send(());
        let _ = opens.await;
        call.await
    };
    tokio::spawn(late).await.unwrap()
}

#[async_trait]
impl Twist for Delays {
    async fn create_with(
        &self,
        _: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let (storage, sessions) = (Arc::clone(&self.storage), sessions.to_vec());
        pass(&self.next_create, async move { storage.create_with(&sessions, options).await }).await
    }

    async fn destroy_with(
        &self,
        _: &dyn SessionStorage,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        let (storage, sessions) = (Arc::clone(&self.storage), sessions.to_vec());
        pass(&self.next_destroy, async move { storage.destroy_with(&sessions, lease).await }).await
    }
}

/// Starts a server over a storage that delays calls. Returns both.
pub(crate) async fn served() -> (Arc<Twisted<Delays>>, Running) {
    let storage = Arc::new(MemoryStorage::new(MemoryOptions::default()));
    let (next_create, next_destroy) = (Mutex::default(), Mutex::default());
    let delays = Twisted::new(storage.clone(), Delays { storage, next_create, next_destroy });
    let server = Running::with(config().storage(delays.clone() as Arc<dyn SessionStorage>)).await;
    (delays, server)
}
