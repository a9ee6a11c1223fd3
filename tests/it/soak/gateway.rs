//! A gateway that registers sessions under a lease, then revokes the lease or lets it expire.

use std::time::Duration;

use sessiond::session::{LeaseId, SessionKey};
use tokio::time::{Instant, sleep};

use super::Changes;
use crate::retry::{Retrying, Tally};

const SESSIONS: i64 = 40;
/// Longer than a killed server takes to restart.
const TTL: Duration = Duration::from_secs(5);
/// An abandoned lease ends within this time: its ttl, and again its ttl after each restart of the server.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

pub(crate) struct Gateway {
    number: i64,
    pub(crate) changes: Changes,
}

impl Gateway {
    pub(crate) fn new(number: i64) -> Self {
        Self { number, changes: Changes::new() }
    }

    pub(crate) async fn come_and_go(&mut self, mut client: Retrying, until: Instant) -> Tally {
        let client = &mut client;
        while Instant::now() < until {
            let lease = client.call(async |client| client.grant_lease(TTL, "soak").await);
            let lease = lease.await.unwrap().answer.id;
            let mut held = self.open_sessions(client, lease).await;
            self.hold(client, lease, &mut held).await;
            // Half of the gateways just stop, as if they had crashed.
            if fastrand::bool() {
                let revoked = client.call(async |client| client.revoke_lease(lease).await).await;
                // An earlier attempt may have revoked it.
                assert!(
                    revoked.as_ref().is_ok_and(|revoked| !revoked.at_once || revoked.answer == held.len() as u64)
                        || revoked.as_ref().is_err_and(|error| error.is_lease_gone()),
                    "{:?}",
                    revoked.map(|revoked| revoked.answer)
                );
            }
            self.ended(client, held).await;
        }
        client.tally.clone()
    }

    async fn open_sessions(&mut self, client: &mut Retrying, lease: LeaseId) -> Vec<SessionKey> {
        let keys: Vec<SessionKey> = (0..SESSIONS).map(|id| SessionKey::new(self.number, id)).collect();
        let created = client.call(async |client| client.batch_create_under(&keys, lease).await).await.unwrap();
        assert!(!created.at_once || !created.answer.contains(&false), "none of the sessions existed before");
        self.changed(&keys);
        keys
    }

    /// Keeps the lease alive while some clients disconnect.
    async fn hold(&mut self, client: &mut Retrying, lease: LeaseId, held: &mut Vec<SessionKey>) {
        for _ in 0..fastrand::u32(0..6) {
            sleep(Duration::from_millis(fastrand::u64(0..400))).await;
            client.call(async |client| client.keep_lease_alive(lease).await).await.unwrap();
            let Some(key) = held.pop() else { return };
            let destroyed = client.call(async |client| client.destroy_under(key, lease).await).await.unwrap();
            assert!(destroyed.answer || !destroyed.at_once);
            self.changed(&[key]);
        }
    }

    /// Waits until the sessions have ended with their lease.
    async fn ended(&mut self, client: &mut Retrying, held: Vec<SessionKey>) {
        let deadline = Instant::now() + ENDS_WITHIN;
        loop {
            let exist = client.call(async |client| client.batch_has(&held).await).await.unwrap().answer;
            if !exist.contains(&true) {
                break;
            }
            assert!(Instant::now() < deadline, "sessions outlive their lease");
            sleep(Duration::from_millis(100)).await;
        }
        self.changed(&held);
    }

    fn changed(&mut self, keys: &[SessionKey]) {
        for key in keys {
            *self.changes.entry(*key).or_default() += 1;
        }
    }
}
