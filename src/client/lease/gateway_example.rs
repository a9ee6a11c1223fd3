use std::{collections::HashSet, sync::Mutex, time::Duration};

use sessiond::{
    client::{Client, ClientError, Lease, LeaseEvent, LeaseEvents},
    session::SessionKey,
};
use tokio::{sync::RwLock, time::sleep};

struct Gateway {
    client: Client,
    lease: Lease,
    /// Locked for reading to register one session, for writing to register all of them.
    order: RwLock<()>,
    held: Mutex<HashSet<SessionKey>>,
}

impl Gateway {
    /// `address` is where other services reach this gateway. 30 s is a good ttl.
    async fn start(client: Client, address: &str, ttl: Duration) -> Result<Self, ClientError> {
        let lease = client.lease(ttl, address).await?;
        Ok(Self { client, lease, order: RwLock::default(), held: Mutex::default() })
    }

    /// A client has connected. Ignore an error that says the lease is gone: `keep_registered` will create the session.
    async fn opened(&self, session: SessionKey) -> Result<bool, ClientError> {
        let _order = self.order.read().await;
        self.held.lock().unwrap().insert(session);
        self.client.create_under(session, self.lease.id()).await
    }

    /// A client has disconnected.
    async fn closed(&self, session: SessionKey) -> Result<bool, ClientError> {
        let _order = self.order.read().await;
        self.held.lock().unwrap().remove(&session);
        self.client.destroy_under(session, self.lease.id()).await
    }

    /// Runs in its own task with `self.lease.events()`.
    async fn keep_registered(&self, mut events: LeaseEvents) {
        while let Some(event) = events.next().await {
            let LeaseEvent::Regranted(lease) = event else { continue };
            loop {
                let order = self.order.write().await;
                let sessions: Vec<_> = self.held.lock().unwrap().iter().copied().collect();
                // Takes only sessions without a lease. The clients of the others have reconnected through another
                // gateway.
                match self.client.batch_take(&sessions, lease, None).await {
                    Ok(placed) => {
                        let mut held = self.held.lock().unwrap();
                        for (session, placed) in sessions.iter().zip(placed) {
                            if placed.lease != Some(lease) {
                                held.remove(session);
                            }
                        }
                        break;
                    }
                    // The lease is lost again. The next event brings a new one.
                    Err(error) if error.is_lease_gone() => break,
                    Err(error) => eprintln!("{error}: retrying"),
                }
                drop(order);
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
