use std::{collections::HashSet, sync::Mutex, time::Duration};

use sessiond::{
    client::{Client, ClientError, Lease, LeaseEvent, LeaseEvents},
    session::SessionKey,
};
use tokio::{sync::RwLock, time::sleep};

struct Gateway {
    client: Client,
    lease: Lease,
    /// Read by whoever tells of one session, written by whoever tells of all.
    order: RwLock<()>,
    held: Mutex<HashSet<SessionKey>>,
}

impl Gateway {
    /// `address` is where the gateway can be reached. 30 s are a good ttl.
    async fn start(client: Client, address: &str, ttl: Duration) -> Result<Self, ClientError> {
        let lease = client.lease(ttl, address).await?;
        Ok(Self { client, lease, order: RwLock::default(), held: Mutex::default() })
    }

    /// A client came. An error needs no answer when it tells that the lease is gone: `hold_on` creates the session.
    async fn opened(&self, session: SessionKey) -> Result<bool, ClientError> {
        let _order = self.order.read().await;
        self.held.lock().unwrap().insert(session);
        self.client.create_under(session, self.lease.id()).await
    }

    /// A client went.
    async fn closed(&self, session: SessionKey) -> Result<bool, ClientError> {
        let _order = self.order.read().await;
        self.held.lock().unwrap().remove(&session);
        self.client.destroy_under(session, self.lease.id()).await
    }

    /// Runs beside everything else, with `self.lease.events()`.
    async fn hold_on(&self, mut events: LeaseEvents) {
        while let Some(event) = events.next().await {
            let LeaseEvent::Regranted(lease) = event else { continue };
            loop {
                let order = self.order.write().await;
                let sessions: Vec<_> = self.held.lock().unwrap().iter().copied().collect();
                // Takes only what nobody holds: the clients of the others have come back through another gateway.
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
                    // Lost once more: the next event tells of the next lease.
                    Err(error) if error.is_lease_gone() => break,
                    Err(error) => eprintln!("{error}: trying again"),
                }
                drop(order);
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
