//! A full disk: the server's registry is on a small file system that only the server sees.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use sessiond::{proto::BatchCreateSessionsRequest, session::SessionKey};
use tokio::time::Instant;
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    fake::soon,
    held::Held,
    observed::{Observed, apply},
    program::{Program, get},
    server::Sessions,
    sessions::has,
};

/// Mounts the file system at the first argument and runs the remaining arguments as a command. Only that command sees
/// the mount, which ends with it.
const MOUNT: &str = "mount -t tmpfs -o size=8m tmpfs \"$0\" && exec \"$@\"";

const UNSHARE: [&str; 5] = ["unshare", "--map-root-user", "--mount", "sh", "-c"];

/// Returns whether this user may mount a file system. Not every machine allows it.
fn can_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut mount = Command::new(UNSHARE[0]);
    mount.args(&UNSHARE[1..]).arg(MOUNT).arg(folder.path()).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

/// A server whose registry is on a disk of eight megabytes.
struct SmallDisk {
    program: Program,
    /// The root of the disk, whose path is not visible to this process. The disk stays mounted while this is open.
    disk: File,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().expect("the path is UTF-8");
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

/// Creates sessions from `next` on until a call is refused. Returns the first id that was not answered.
async fn create_until_refused(client: &Sessions, mut next: i64) -> i64 {
    loop {
        match create(client, next..next + BATCH).await {
            Ok(_) => next += BATCH,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.get_details_retry_info().is_some(), "{status:?}");
                assert_eq!(status.get_details_error_info().unwrap().reason, "STORAGE_REFUSES_CHANGES");
                assert!(status.message().contains("because the disk is full"), "{status:?}");
                return next;
            }
        }
        assert!(next < 2_000_000, "the disk of eight megabytes never fills");
    }
}

async fn check(client: &Sessions, answered: i64) {
    let mut snapshot = Observed::snapshot(client).await;
    let held = snapshot.synced().await;
    let lost: Vec<i64> = (0..answered).filter(|id| !held.contains_key(&SessionKey::new(0, *id))).collect();
    assert!(lost.is_empty(), "{} of {answered} answered creates are lost", lost.len());
}

#[tokio::test]
async fn a_full_disk_refuses_changes_loses_none_and_recovers_without_a_restart() {
    if !can_mount() {
        println!("SKIPPED: this user may not mount a file system (unshare --map-root-user --mount)");
        return;
    }
    let small = SmallDisk::start().await;
    let client = small.program.sessions();
    let mut observed = Observed::now(&client).await;
    let mut received = Held::new();
    create(&client, 0..BATCH).await.unwrap();

    small.fill();
    let answered = create_until_refused(&client, BATCH).await;
    assert!(has(&client, 0, 0).await && has(&client, 0, answered - 1).await, "reads still work");

    small.make_room();
    // The server recovers without a restart.
    let marker = -1;
    let recovers = async {
        while create(&client, marker..0).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(recovers).await;
    // The observer receives every change once, including those of the batch that was not answered.
    while !received.contains_key(&SessionKey::new(0, marker)) {
        apply(&mut received, &observed.more_events().await);
    }
    assert!(received == Observed::snapshot(&client).await.synced().await, "the observer's view equals a snapshot");
    check(&client, answered).await;

    // After a kill while the disk is full, every answered change is in the file.
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

/// A storage must detect within this time that it refuses changes, or accepts them again.
const NOTICED: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_full_disk_is_reported_without_waiting_for_a_change_to_fail() {
    if !can_mount() {
        println!("SKIPPED: this user may not mount a file system (unshare --map-root-user --mount)");
        return;
    }
    let small = SmallDisk::start().await;
    let program = &small.program;
    let health = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
    let mut health = HealthClient::new(health);
    let service = |name: &str| HealthCheckRequest { service: name.to_owned() };
    let mut watch = soon(health.watch(service("sessiond.v1.SessionService/write"))).await.unwrap().into_inner();
    let full = "sessiond_storage_writable{cause=\"disk_full\"}";
    for is_full in [false, true, false] {
        let changed = Instant::now();
        if is_full {
            small.fill();
        } else if program.log().contains("refuses") {
            small.make_room();
        }
        let expected = if is_full { ServingStatus::NotServing } else { ServingStatus::Serving };
        assert_eq!(soon(watch.message()).await.unwrap().unwrap().status(), expected);
        assert!(changed.elapsed() < NOTICED, "{:?}", changed.elapsed());

        let page = get(program.admin, "/writable").await;
        if is_full {
            assert_eq!(page.status, 503);
            assert!(page.body.starts_with("disk_full: the disk is full ("), "{}", page.body);
            assert!(page.body.contains("free some space"), "{}", page.body);
        } else {
            assert_eq!((page.status, &*page.body), (200, "writable\n"));
        }
        assert_eq!(program.metric(full).await, u64::from(!is_full));
        assert_eq!(program.metric("sessiond_storage_writable{cause=\"disk_failed\"}").await, 1);
        // Reads and streams work, so the server stays in the load balancer.
        assert_eq!(get(program.admin, "/ready").await.status, 200);
        assert_eq!(program.metric("sessiond_storage_up").await, 1);
        let answer = soon(health.check(service("sessiond.v1.SessionService"))).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
        if is_full {
            program.logs("the storage refuses changes").await;
            create_until_refused(&program.sessions(), 0).await;
        }
    }
    program.logs("the storage accepts changes again").await;
    let log = program.log();
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("refuses changes"), count("accepts changes again")), (1, 1), "{log}");
    assert!(log.contains("\"cause\":\"disk_full\""), "{log}");
}
