//! Creating a file while the process or its machine may stop after any operation.

use super::{
    ledger::Ledger,
    open, options,
    sim::{Fault, Sim},
    try_open,
};
use crate::{
    session::SessionKey,
    storage::{
        SessionStorage,
        file::{
            disk::Disk,
            store::builder,
            watched::{Backend, Watched},
        },
    },
};
use std::{path::Path, sync::Arc};

/// Files that belong to others.
const FOREIGN: [&str; 3] = ["registry.new", "registry.probe", ".registry.tmp"];

fn with_foreign_files() -> Sim {
    let disk = Sim::default();
    FOREIGN.iter().for_each(|path| disk.put(path, b"not yours"));
    disk
}

fn has_foreign_files(disk: &Sim) -> bool {
    FOREIGN.iter().all(|path| disk.content(path).as_deref() == Some(b"not yours"))
}

/// Returns the disk as it is after the process is killed, and after its machine crashes.
fn killed(disk: &Sim) -> [Sim; 2] {
    [disk.copy(), disk.after_crash(&mut fastrand::Rng::new())]
}

async fn is_usable(disk: &Sim) {
    for exists in [false, true] {
        let storage = open(disk, 1000).await;
        let session = [SessionKey::new(0, 1)];
        assert_eq!(storage.has(&session).await.unwrap(), [exists]);
        storage.create(&session, None).await.unwrap();
    }
}

#[tokio::test]
async fn interrupted_first_start_is_repeated() {
    for operations in 1.. {
        let disk = with_foreign_files();
        disk.stop_after(operations);
        let opened = try_open(&disk, options(1000)).await;
        if opened.is_ok() {
            assert!(operations > 10, "a start takes more than {operations} operations");
            break;
        }
        for disk in killed(&disk) {
            is_usable(&disk).await;
            assert!(has_foreign_files(&disk), "after {operations} operations");
        }
    }
}

#[tokio::test]
async fn file_left_incomplete_by_an_earlier_version_is_created_again() {
    for len in [0, 1, 9, 100, 4096, 1 << 20] {
        let disk = Sim::default();
        disk.put("registry", &vec![0; len]);
        is_usable(&disk).await;
    }
    for operations in 1.. {
        let disk = Sim::default();
        disk.stop_after(operations);
        let file = disk.create(Path::new("registry")).and_then(Watched::new);
        let made = file.map(|file| builder().create_with_backend(Backend(Arc::new(file))));
        let is_whole = made.is_ok_and(|made| made.is_ok());
        for disk in killed(&disk) {
            is_usable(&disk).await;
        }
        if is_whole {
            break;
        }
    }
    let disk = Sim::default();
    for content in [&b"a poem"[..], &[&[0; 9][..], b"zeros come first"].concat(), &[1; 5000]] {
        disk.put("registry", content);
        let refused = try_open(&disk, options(1000)).await.unwrap_err().to_string();
        assert!(refused.contains("is not a registry of sessiond"), "{refused}");
        assert_eq!(disk.content("registry").as_deref(), Some(content));
    }
}

#[tokio::test]
async fn interrupted_replacement_of_the_file_by_a_copy_loses_nothing() {
    for operations in 1.. {
        let (disk, ledger) = (with_foreign_files(), Ledger::default());
        let storage = open(&disk, 1000).await;
        for id in 0..3 {
            ledger.create(&storage, SessionKey::new(0, id), None).await.unwrap();
        }
        disk.set_fault(Some(Fault::Syncs));
        ledger.create(&storage, SessionKey::new(0, 3), None).await.unwrap_err();
        disk.stop_after(operations);
        disk.set_fault(None);
        let recovered = async {
            while !disk.has_stopped() && ledger.create(&storage, SessionKey::new(0, 4), None).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), recovered).await.unwrap();
        let is_done = !disk.has_stopped();
        // Only one of the two can be checked: the ledger takes over the state that it finds.
        let disk = &killed(&disk)[operations as usize % 2];
        ledger.check(&*open(disk, 1000).await).await;
        assert!(has_foreign_files(disk), "after {operations} operations");
        if is_done {
            break;
        }
    }
}
