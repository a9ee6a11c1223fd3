//! A registry with replicas under test, one replica that keeps its permissions, and what is known of the sessions.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use sessiond::{session::SessionKey, storage::StorageError, subject::Start};
use tokio::time::{Instant, sleep};

use super::{
    Episode, Move,
    mirror::Mirror,
    story::{GROUPS, Outcome, Story},
    trouble::{Servers, Trouble},
};
use crate::redis::replica::Replica;

/// No lease expires within this time.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// Every condition that a test waits for becomes true within this time.
const SOON: Duration = Duration::from_secs(20);

const REPLICAS: usize = 2;

pub(super) struct World<'a> {
    servers: &'a Servers,
    registry: String,
    /// Each replica with its mirror. The last one is the witness, which keeps its permissions.
    replicas: Vec<(Replica, Mirror)>,
    stories: Vec<Story>,
    /// How often keys were lost.
    losses: usize,
    log: Vec<String>,
}

async fn mirror(replica: &Replica) -> Mirror {
    Mirror::of(replica.watch(Start::Snapshot).await.observer)
}

/// Waits until `attempt` returns a value. Fails as soon as `attempt` does.
async fn soon<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<Option<T>, String>) -> Result<T, String> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(done) = attempt().await? {
            return Ok(done);
        }
        if Instant::now() > deadline {
            return Err(format!("timed out waiting for {what}"));
        }
        sleep(Duration::from_millis(3)).await;
    }
}

impl<'a> World<'a> {
    pub(super) async fn new(servers: &'a Servers, partitions: u32) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let registry = format!("f{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let parameters = format!("registry={registry}&partitions={partitions}&buckets=12&timeout_ms=200");
        let mut replicas = Vec::new();
        for n in 0..=REPLICAS {
            let replica = Replica::start(&servers.url(n < REPLICAS, &parameters)).await;
            let mirror = mirror(&replica).await;
            replicas.push((replica, mirror));
        }
        let stories = (0..GROUPS).map(Story::new).collect();
        Self { servers, registry, replicas, stories, losses: 0, log: Vec::new() }
    }

    /// Plays a history. An error says what is wrong and which calls were made.
    pub(super) async fn play(&mut self, episodes: &[Episode]) -> Result<(), String> {
        let played = self.play_all(episodes).await;
        played.map_err(|wrong| format!("{wrong}\n{}", self.log.join("\n")))
    }

    async fn play_all(&mut self, episodes: &[Episode]) -> Result<(), String> {
        for Episode { trouble, delay, moves, calm } in episodes {
            self.log.push(format!("{trouble:?} after {delay} us"));
            for (n, one) in moves.iter().enumerate() {
                let begins = (n == 0).then_some((trouble, *delay));
                self.play_move(one, begins, trouble).await?;
            }
            self.servers.recover();
            self.log.push("the fault is over".to_owned());
            self.work_again(trouble).await?;
            for one in calm {
                self.play_move(one, None, trouble).await?;
            }
            self.all_agree().await?;
        }
        self.end().await
    }

    async fn play_move(
        &mut self,
        one: &Move,
        begins: Option<(&Trouble, u64)>,
        trouble: &Trouble,
    ) -> Result<(), String> {
        let calls = join_all(one.iter().zip(&self.stories).map(async |(call, story)| match call {
            Some(call) => story.act(&*self.replicas[call.replica].0.storage, &call.action).await,
            None => Ok(Outcome::Nothing),
        }));
        let beginning = async {
            if let Some((trouble, delay)) = begins {
                sleep(Duration::from_micros(delay)).await;
                self.servers.begin(trouble, &self.registry).await;
            }
        };
        let (outcomes, ()) = tokio::join!(calls, beginning);
        let is_lost = matches!(trouble, Trouble::Lose("meta", _));
        if begins.is_some() && trouble.loses() {
            self.losses += 1;
            self.stories.iter_mut().for_each(Story::lose_leases);
        }
        let mut open = Vec::new();
        for ((call, outcome), story) in one.iter().zip(outcomes).zip(&mut self.stories) {
            let outcome = outcome?;
            self.log.push(call.as_ref().map_or(String::new(), |call| format!("{call:?}: {outcome:?}")));
            open.push(match call {
                Some(call) => story.note(&call.action, &outcome)?,
                None => BTreeSet::new(),
            });
        }
        if begins.is_some() && trouble.loses() {
            // Leases that were granted at the same moment may be lost, too.
            self.stories.iter_mut().for_each(Story::lose_leases);
        }
        // By now, a failed call has either taken effect or never will.
        let now = self.now().await?;
        for ((story, open), now) in self.stories.iter_mut().zip(&open).zip(now.chunks(super::SESSIONS)) {
            story.compare(now, open, is_lost)?;
        }
        self.agrees(REPLICAS).await
    }

    fn keys(&self) -> Vec<SessionKey> {
        self.stories.iter().flat_map(Story::keys).collect()
    }

    /// Asks the witness which sessions exist.
    async fn now(&self) -> Result<Vec<bool>, String> {
        let (witness, keys) = (&self.replicas[REPLICAS].0, self.keys());
        soon("the witness to answer", async || Ok(witness.storage.has(&keys).await.ok())).await
    }

    /// Waits until the observer of a replica holds exactly the sessions that exist.
    async fn agrees(&self, replica: usize) -> Result<(), String> {
        let (mut held, mut exist) = (None, BTreeSet::new());
        let keys = self.keys();
        let agreed = soon("an observer to hold what exists", async || {
            let now = self.now().await?;
            exist = keys.iter().zip(now).filter(|(_, exists)| *exists).map(|(key, _)| *key).collect();
            held = self.replicas[replica].1.held()?;
            Ok((held.as_ref() == Some(&exist)).then_some(()))
        });
        let agreed = agreed.await;
        agreed
            .map_err(|wrong| format!("{wrong}: the observer of replica {replica} holds {held:?}, but {exist:?} exist"))
    }

    /// Waits until every replica works again.
    async fn work_again(&self, trouble: &Trouble) -> Result<(), String> {
        // Every partition has some of these.
        let probes: Vec<SessionKey> = (0..40).map(|n| SessionKey::new(-1, n)).collect();
        for (n, (replica, _)) in self.replicas.iter().enumerate() {
            let storage = &replica.storage;
            let what = format!("replica {n} to work again after {trouble:?}");
            soon(&what, async || Ok(storage.create(&probes, None).await.ok())).await?;
            soon(&what, async || Ok(storage.destroy(&probes, None).await.ok())).await?;
            let lease = soon(&what, async || Ok(storage.grant_lease(LONG, "probe").await.ok())).await?;
            soon(&what, async || match storage.revoke_lease(lease).await {
                Ok(_) | Err(StorageError::UnknownLease(_)) => Ok(Some(())),
                Err(_) => Ok(None),
            })
            .await?;
        }
        Ok(())
    }

    async fn all_agree(&self) -> Result<(), String> {
        for (replica, (_, mirror)) in self.replicas.iter().enumerate() {
            self.agrees(replica).await?;
            let resets = mirror.resets();
            if resets.len() > self.losses {
                return Err(format!(
                    "replica {replica} reset its observers for {resets:?}, but keys were lost only {} times",
                    self.losses
                ));
            }
        }
        Ok(())
    }

    /// Ends every lease and checks everything once more.
    async fn end(&mut self) -> Result<(), String> {
        let storage = &self.replicas[0].0.storage;
        for lease in self.stories.iter().flat_map(Story::leases) {
            soon("a lease to end", async || match storage.revoke_lease(lease).await {
                Ok(_) | Err(StorageError::UnknownLease(_)) => Ok(Some(())),
                Err(_) => Ok(None),
            })
            .await?;
        }
        self.stories.iter_mut().for_each(Story::end_leases);
        let leased: Vec<SessionKey> = self.stories.iter().flat_map(Story::leased).collect();
        let gone = async || Ok(storage.has(&leased).await.ok().filter(|exist| !exist.contains(&true)));
        soon("the sessions of ended leases to be gone", gone).await?;
        let now = self.now().await?;
        for (story, now) in self.stories.iter_mut().zip(now.chunks(super::SESSIONS)) {
            story.compare(now, &BTreeSet::new(), false)?;
        }
        self.all_agree().await?;
        let count = now.iter().filter(|exists| **exists).count() as u64;
        for replica in 0..=REPLICAS {
            let storage = &self.replicas[replica].0.storage;
            let counted = async || Ok((storage.session_count().await.ok() == Some(count)).then_some(()));
            soon("the count of sessions to be right", counted).await?;
            self.replicas[replica].1 = mirror(&self.replicas[replica].0).await;
        }
        self.all_agree().await
    }
}
