//! Remembers which leases were kept alive recently.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::{session::LeaseId, storage::StorageError};

/// Keeping a lease alive again within this fraction of its ttl gains almost nothing.
const TENTH: u32 = 10;

/// The maximum number of leases remembered. For any others the storage is called each time.
const MAX_LEASES: usize = 65_536;

/// Stale entries are removed at most this often.
const SWEEP: Duration = Duration::from_secs(1);

/// Answers keep-alives that repeat within a tenth of the ttl. Rate limits do not apply to keep-alives, so a gateway
/// that sends them in a tight loop must not cost the storage a call each.
#[derive(Default)]
pub(super) struct KeptLeases(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// For each lease its ttl, and until when keep-alives are answered from here.
    leases: HashMap<LeaseId, (Duration, Instant)>,
    /// Counts removals by [`KeptLeases::ending`] and [`KeptLeases::forget_all`]. An answer to a call that started
    /// before the newest of them is stale.
    forgotten: u64,
    swept: Option<Instant>,
}

impl KeptLeases {
    /// Keeps a lease alive with `ask`, unless that was done within the last tenth of its ttl.
    pub(super) async fn keep(
        &self,
        lease: LeaseId,
        ask: impl Future<Output = Result<Duration, StorageError>>,
    ) -> Result<Duration, StorageError> {
        let asked = Instant::now();
        let forgotten = {
            let kept = self.0.lock();
            match kept.leases.get(&lease) {
                Some((ttl, until)) if asked < *until => return Ok(*ttl),
                _ => kept.forgotten,
            }
        };
        let ttl = ask.await?;
        let mut kept = self.0.lock();
        if kept.forgotten == forgotten && kept.has_room_for(lease, asked) {
            kept.leases.insert(lease, (ttl, asked + ttl / TENTH));
        }
        Ok(ttl)
    }

    /// Forgets a lease that is about to end, both now and when the returned guard is dropped.
    pub(super) fn ending(&self, lease: LeaseId) -> impl Drop + use<'_> {
        self.forget(lease);
        Ending { kept: self, lease }
    }

    /// Forgets all leases, because the storage may have lost them.
    pub(super) fn forget_all(&self) {
        let mut kept = self.0.lock();
        kept.forgotten += 1;
        kept.leases.clear();
    }

    fn forget(&self, lease: LeaseId) {
        let mut kept = self.0.lock();
        kept.forgotten += 1;
        kept.leases.remove(&lease);
    }
}

impl Kept {
    fn has_room_for(&mut self, lease: LeaseId, now: Instant) -> bool {
        if self.swept.is_none_or(|swept| now >= swept + SWEEP) {
            self.swept = Some(now);
            self.leases.retain(|_, (_, until)| *until > now);
        }
        self.leases.len() < MAX_LEASES || self.leases.contains_key(&lease)
    }
}

struct Ending<'a> {
    kept: &'a KeptLeases,
    lease: LeaseId,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.kept.forget(self.lease);
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn lease(number: u64) -> LeaseId {
        LeaseId::from_number(number).unwrap()
    }

    /// Returns whether the storage was called.
    async fn asks(kept: &KeptLeases, lease: LeaseId) -> bool {
        let mut asked = false;
        let ask = async {
            asked = true;
            Ok(TTL)
        };
        assert_eq!(kept.keep(lease, ask).await.unwrap(), TTL);
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn storage_is_called_once_per_tenth_of_the_ttl() {
        let kept = KeptLeases::default();
        assert!(asks(&kept, lease(1)).await && !asks(&kept, lease(1)).await && asks(&kept, lease(2)).await);
        tokio::time::advance(TTL / TENTH - Duration::from_millis(1)).await;
        assert!(!asks(&kept, lease(1)).await);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(asks(&kept, lease(1)).await && !asks(&kept, lease(1)).await);
    }

    #[tokio::test]
    async fn ended_lease_is_not_answered_from_memory() {
        let kept = KeptLeases::default();
        assert!(asks(&kept, lease(1)).await);
        let ending = kept.ending(lease(1));
        assert!(asks(&kept, lease(1)).await);
        drop(ending);
        assert!(asks(&kept, lease(1)).await);
        // The storage answers before the lease ends, and the answer arrives afterwards.
        let late = async {
            drop(kept.ending(lease(2)));
            Ok(TTL)
        };
        kept.keep(lease(2), late).await.unwrap();
        assert!(asks(&kept, lease(2)).await);
        kept.forget_all();
        assert!(asks(&kept, lease(2)).await);
        // Failures are not remembered.
        kept.keep(lease(3), ready(Err(StorageError::UnknownLease(lease(3))))).await.unwrap_err();
        assert!(asks(&kept, lease(3)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn remembered_leases_are_bounded() {
        let kept = KeptLeases::default();
        let most = MAX_LEASES as u64;
        for number in 1..=most + 1 {
            assert!(asks(&kept, lease(number)).await);
        }
        assert!(asks(&kept, lease(most + 1)).await && !asks(&kept, lease(1)).await);
        tokio::time::advance(TTL).await;
        assert!(asks(&kept, lease(most + 1)).await && !asks(&kept, lease(most + 1)).await);
        assert_eq!(kept.0.lock().leases.len(), 1);
    }
}
