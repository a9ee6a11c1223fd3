//! A disk that is full: a small file system that only the server sees.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use sessiond::proto::BatchCreateSessionsRequest;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    fake::soon,
    observed::{Key, Observed, apply},
    program::Program,
    server::Sessions,
    sessions::has,
};

/// Mounts it where the first argument says, for the program that follows and nobody else; it ends with that.
const MOUNT: &str = "mount -t tmpfs -o size=8m tmpfs \"$0\" && exec \"$@\"";

const UNSHARE: [&str; 5] = ["unshare", "--map-root-user", "--mount", "sh", "-c"];

/// Whether this user may mount, which not every machine lets them.
fn may_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut mount = Command::new(UNSHARE[0]);
    mount.args(&UNSHARE[1..]).arg(MOUNT).arg(folder.path()).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

/// A server whose registry is on a disk of eight megabytes.
struct SmallDisk {
    program: Program,
    /// The disk, which is not to be seen from here by its path. It is there for as long as this is open.
    disk: File,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().expect("a path of UTF-8");
        let storage = format!("file:{path}/registry");
        let within = [&UNSHARE[..], &[MOUNT, path]].concat();
        let program = Program::start_within(&within, &["--workers", "1", "--storage", &storage]).await;
        let disk = File::open(format!("/proc/{}/root{path}", program.pid())).unwrap();
        Self { program, disk, _folder: folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.disk.as_raw_fd()).into()
    }

    fn fill(&self) {
        let mut ballast = File::create(self.path("ballast")).unwrap();
        let full = std::iter::repeat_with(|| ballast.write_all(&[7; 4096])).find_map(Result::err);
        assert_eq!(full.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
    }

    fn make_room(&self) {
        fs::remove_file(self.path("ballast")).unwrap();
    }
}

async fn create(client: &Sessions, ids: std::ops::Range<i64>) -> Result<Vec<bool>, Status> {
    let request = BatchCreateSessionsRequest { session_ids: ids.collect(), ..Default::default() };
    Ok(soon(client.clone().batch_create_sessions(request)).await?.into_inner().created)
}

const BATCH: i64 = 5000;

/// Creates sessions from `next` on until that is refused; gives the first that was not answered.
async fn create_until_refused(client: &Sessions, mut next: i64) -> i64 {
    loop {
        match create(client, next..next + BATCH).await {
            Ok(_) => next += BATCH,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.get_details_retry_info().is_some(), "{status:?}");
                return next;
            }
        }
        assert!(next < 2_000_000, "eight megabytes are full at some time");
    }
}

async fn check(client: &Sessions, answered: i64) {
    let mut snapshot = Observed::snapshot(client).await;
    let held = snapshot.synced().await;
    let lost: Vec<i64> = (0..answered).filter(|id| !held.contains(&(0, *id))).collect();
    assert!(lost.is_empty(), "{} of {answered} that were answered are lost", lost.len());
}

#[tokio::test]
async fn a_full_disk_refuses_changes_loses_none_and_goes_on_when_there_is_room() {
    if !may_mount() {
        println!("SKIPPED: this user may not mount a file system (unshare --map-root-user --mount)");
        return;
    }
    let small = SmallDisk::start().await;
    let client = small.program.sessions();
    let mut observed = Observed::now(&client).await;
    let mut told = BTreeSet::<Key>::new();
    create(&client, 0..BATCH).await.unwrap();

    small.fill();
    let answered = create_until_refused(&client, BATCH).await;
    assert!(has(&client, 0, 0).await && has(&client, 0, answered - 1).await, "what is there can be read");

    small.make_room();
    // Nobody restarts it.
    let marker = -1;
    let goes_on = async {
        while create(&client, marker..0).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(goes_on).await;
    // It is told of everything once, also of what was done of the batch that was not answered.
    while !told.contains(&(0, marker)) {
        observed.more_events().await.iter().for_each(|event| apply(&mut told, event));
    }
    assert!(told == Observed::snapshot(&client).await.synced().await, "what it was told of is what there is");
    check(&client, answered).await;

    // Killed while it is full, it has all of that on its disk.
    create(&client, answered..answered + BATCH).await.unwrap();
    small.fill();
    let answered = create_until_refused(&client, answered + BATCH).await;
    small.program.signal("KILL").await;
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("registry");
    fs::copy(small.path("registry"), &copy).unwrap();
    let program = Program::start(&["--storage", &format!("file:{}", copy.display())]).await;
    check(&program.sessions(), answered).await;
}
