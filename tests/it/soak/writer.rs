//! A writer that changes its own sessions and records what it has written.

use std::time::Duration;

use sessiond::session::SessionKey;
use tokio::time::{Instant, sleep};

use super::Changes;
use crate::retry::{Retrying, Tally};

/// The number of sessions of each writer.
const SESSIONS: i64 = 500;
const BATCH: usize = 30;
/// The mean pause between calls, so that the load is the same on every machine that is fast enough.
const PACE: Duration = Duration::from_millis(5);

pub(crate) struct Writer {
    number: i64,
    pub(crate) changes: Changes,
}

impl Writer {
    pub(crate) fn new(number: i64) -> Self {
        Self { number, changes: Changes::new() }
    }

    /// Creates, destroys and looks for sessions, alone and in batches. Checks the answers against what it has written.
    pub(crate) async fn write(&mut self, mut client: Retrying, until: Instant) -> Tally {
        let client = &mut client;
        while Instant::now() < until {
            match fastrand::u32(0..10) {
                0..4 => self.create(client).await,
                4..7 => self.destroy(client).await,
                7 => self.check_exists(client).await,
                8 => self.create_batch(client).await,
                _ => self.destroy_batch(client).await,
            }
            sleep(PACE.mul_f64(2.0 * fastrand::f64())).await;
        }
        client.tally.clone()
    }

    async fn create(&mut self, client: &mut Retrying) {
        let key = self.any();
        let answered = client.call(async |client| client.create(key).await).await.unwrap();
        self.record(key, true, answered.at_once.then_some(answered.answer));
    }

    async fn destroy(&mut self, client: &mut Retrying) {
        let key = self.any();
        let answered = client.call(async |client| client.destroy(key).await).await.unwrap();
        self.record(key, false, answered.at_once.then_some(answered.answer));
    }

    async fn check_exists(&mut self, client: &mut Retrying) {
        let key = self.any();
        let exists = client.call(async |client| client.has(key).await).await.unwrap().answer;
        assert_eq!(exists, self.exists(key), "{key:?}");
    }

    async fn create_batch(&mut self, client: &mut Retrying) {
        let keys = self.some();
        let answered = client.call(async |client| client.batch_create(&keys).await).await.unwrap();
        for (key, created) in keys.iter().zip(answered.answer) {
            self.record(*key, true, answered.at_once.then_some(created));
        }
    }

    async fn destroy_batch(&mut self, client: &mut Retrying) {
        let keys = self.some();
        let answered = client.call(async |client| client.batch_destroy(&keys).await).await.unwrap();
        for (key, destroyed) in keys.iter().zip(answered.answer) {
            self.record(*key, false, answered.at_once.then_some(destroyed));
        }
    }

    fn any(&self) -> SessionKey {
        SessionKey::new(self.number, fastrand::i64(0..SESSIONS))
    }

    fn some(&self) -> Vec<SessionKey> {
        (0..fastrand::usize(1..BATCH)).map(|_| self.any()).collect()
    }

    fn exists(&self, key: SessionKey) -> bool {
        self.changes.get(&key).is_some_and(|changes| changes % 2 == 1)
    }

    /// Records that the session now exists or not. `changed` is the answer of the call, or `None` if the answer may
    /// reflect an earlier attempt.
    fn record(&mut self, key: SessionKey, exists: bool, changed: Option<bool>) {
        let changes = self.exists(key) != exists;
        assert!(changed.is_none_or(|changed| changed == changes), "{key:?}, exists after the call: {exists}");
        *self.changes.entry(key).or_default() += u32::from(changes);
    }
}
