//! The end of a lease is not reported while a crash may still undo it.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{pause, resume, timeout};

use super::{
    open,
    sim::{Fault, Sim},
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::{LeaseQuery, SessionStorage, StorageError, file::FileStorage},
};

const TTL: Duration = Duration::from_secs(1);

/// More sessions than a call changes before it yields.
const MANY: i64 = 1025;

fn keys(ids: std::ops::Range<i64>) -> Vec<SessionKey> {
    ids.map(|id| SessionKey::new(0, id)).collect()
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Keep,
    Revoke,
    Create(i64),
    Destroy(i64),
}

impl Call {
    async fn run(self, storage: &FileStorage, lease: LeaseId) -> Result<String, StorageError> {
        // These sessions exist, and are under no lease.
        let sessions = |count| keys(1..1 + count);
        Ok(match self {
            Self::Keep => format!("{:?}", storage.keep_lease_alive(lease).await?),
            Self::Revoke => format!("{:?}", storage.revoke_lease(lease).await?),
            Self::Create(count) => format!("{:?}", storage.create(&sessions(count), Some(lease)).await?),
            Self::Destroy(count) => format!("{:?}", storage.destroy(&sessions(count), Some(lease)).await?),
        })
    }

    /// Makes the call on a lease that `end` has ended, on a disk that does not respond, and checks that it fails. A
    /// call of many sessions starts before the lease ends.
    async fn fails_after(self, end: impl AsyncFnOnce(&FileStorage, LeaseId)) {
        let disk = Sim::default();
        let storage = open(&disk, 10_000).await;
        let lease = storage.grant_lease(TTL, "gateway").await.unwrap();
        storage.create(&keys(0..1), Some(lease)).await.unwrap();
        storage.create(&keys(1..1 + MANY), None).await.unwrap();
        disk.set_fault(Some(Fault::Stalled));
        // The paused clock advances to the next timer.
        pause();
        let mut call = Box::pin(self.run(&storage, lease));
        if let Self::Create(MANY) | Self::Destroy(MANY) = self {
            assert!((&mut call).now_or_never().is_none(), "the call yields before the last session");
        }
        end(&storage, lease).await;
        assert_eq!(storage.lease_count().await.unwrap(), 1, "{self:?}: the metric reports the end");
        let answer = call.await;
        resume();
        assert_not_acknowledged(answer, self);
        let crashed = disk.after_crash(&mut fastrand::Rng::with_seed(0));
        let storage = open(&crashed, 10_000).await;
        storage.keep_lease_alive(lease).await.unwrap();
        assert_eq!(storage.has(&keys(0..1)).await.unwrap(), [true]);
    }
}

const CALLS: [Call; 6] =
    [Call::Keep, Call::Revoke, Call::Create(1), Call::Create(MANY), Call::Destroy(1), Call::Destroy(MANY)];

fn assert_not_acknowledged<T: std::fmt::Debug>(answer: Result<T, StorageError>, to: impl std::fmt::Debug) {
    let error = answer.expect_err("the disk does not respond");
    assert!(matches!(error, StorageError::Refused(_) | StorageError::Unavailable(_)), "{to:?}: {error}");
}

/// Revokes a lease, and does not wait for the disk.
async fn revoke(storage: &FileStorage, lease: LeaseId) {
    let _ = timeout(Duration::from_millis(100), storage.revoke_lease(lease)).await;
}

/// Lets a lease expire, and does not wait for the disk.
async fn expire(storage: &FileStorage, _: LeaseId) {
    let _ = timeout(TTL * 3, storage.expire_leases()).await;
}

#[tokio::test]
async fn end_of_a_revoked_lease_is_not_reported_before_it_is_on_disk() {
    for call in CALLS {
        call.fails_after(revoke).await;
    }
}

#[tokio::test]
async fn end_of_an_expired_lease_is_not_reported_before_it_is_on_disk() {
    for call in CALLS {
        call.fails_after(expire).await;
    }
}

#[tokio::test]
async fn list_of_leases_reports_no_change_before_it_is_on_disk() {
    type Change = fn(&FileStorage, LeaseId);
    let changes: [(&str, Change); 3] = [
        ("grant", |storage, _| assert!(storage.grant_lease(TTL, "another").now_or_never().is_none())),
        ("linger", |storage, lease| assert!(storage.revoke_lease_with(lease, TTL * 60).now_or_never().is_none())),
        ("end", |storage, lease| assert!(storage.revoke_lease(lease).now_or_never().is_none())),
    ];
    let all = LeaseQuery { after: None, limit: 10, owner: None, lease_ids: Vec::new() };
    for (name, change) in changes {
        let disk = Sim::default();
        let storage = open(&disk, 10_000).await;
        let lease = storage.grant_lease(TTL * 60, "gateway").await.unwrap();
        assert_eq!(storage.list_leases(&all).await.unwrap().leases.len(), 1);
        disk.set_fault(Some(Fault::Stalled));
        pause();
        change(&storage, lease);
        assert_not_acknowledged(storage.list_leases(&all).await, name);
        resume();
        disk.set_fault(None);
    }
}

#[tokio::test]
async fn reached_limit_is_not_reported_while_a_crash_may_undo_it() {
    let disk = Sim::default();
    let options = crate::storage::StorageOptions { max_sessions: 1, max_leases: 1, ..super::options(1000) };
    let storage = super::open_with(&disk, options).await;
    disk.set_fault(Some(Fault::Stalled));
    pause();
    assert!(storage.create(&keys(0..1), None).now_or_never().is_none());
    assert_not_acknowledged(storage.create(&keys(1..2), None).await, "create");
    disk.set_fault(None);
    resume();
    let recovered = async {
        while storage.writability().refusal().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), recovered).await.unwrap();
    let refused = storage.create(&keys(1..2), None).await.unwrap_err();
    assert!(matches!(refused, StorageError::TooManySessions { .. }), "{refused}");
    disk.set_fault(Some(Fault::Stalled));
    pause();
    assert!(storage.grant_lease(TTL, "").now_or_never().is_none());
    assert_not_acknowledged(storage.grant_lease(TTL, "").await, "grant");
    resume();
    disk.set_fault(None);
}
