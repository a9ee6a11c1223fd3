//! The promises on the file storage, in real time.

use std::sync::Arc;

use proptest::prelude::*;
use sessiond::storage::{SessionStorage, StorageOptions, file::FileStorage};

use super::{
    Fixture,
    concurrent::{plan, run_plan},
    herd::herd,
    history::{Shape, shape, steps},
    play,
};

/// Registries in separate files. A file always has one partition, and its own number of buckets.
struct File(tempfile::TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Fixture for File {
    const IS_PAUSED: bool = false;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        let options =
            StorageOptions::DEFAULT.retain_events(shape.storage_events).max_sessions(1 << 20).max_leases(1 << 16);
        let path = self.0.path().join(format!("{:x}", fastrand::u64(..)));
        Arc::new(FileStorage::open(path, options).await.unwrap())
    }
}

proptest! {
    // These cases run in real time, so there are fewer of them.
    #![proptest_config(ProptestConfig { cases: 16, ..super::config() })]

    #[test]
    fn every_stream_of_a_history_keeps_its_promises(shape in shape(), steps in steps(1..60)) {
        let (broken, _) = play(&File::new(), &Shape { partitions: 1, ..shape }, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }

    #[test]
    fn observers_that_share_a_snapshot_keep_their_promises((shape, steps) in herd()) {
        let (broken, _) = play(&File::new(), &Shape { partitions: 1, ..shape }, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }

    #[test]
    fn every_stream_keeps_its_promises_under_concurrency(mut plan in plan()) {
        plan.shape.partitions = 1;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let broken = runtime.block_on(run_plan(&File::new(), &plan));
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}
