//! A registry in a file: restarts, backups, and files that cannot be opened.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use redb::TableDefinition;
use sessiond::{
    proto::{ResetReason, SessionEventType, subscribe_response::Body},
    session::SessionKey,
    storage::{
        SessionStorage, StorageOptions, StorageUrl,
        file::{FileError, FileStorage, backup},
    },
};

use crate::{
    certificates::text,
    fake::soon,
    observed::{Observed, created_ids, keys},
    program::{Program, command, fails, run, serve},
    sessions::{batch_create, batch_destroy, create, has},
};

const OPTIONS: StorageOptions = StorageOptions::DEFAULT.retain_events(1000).max_sessions(1 << 20).max_leases(1 << 10);

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

async fn open_error(path: &Path) -> String {
    FileStorage::open(path, OPTIONS).await.unwrap_err().to_string()
}

#[tokio::test]
async fn an_observer_resumes_after_a_restart_and_receives_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--storage", &url(&folder.path().join("new/registry"))];
    let mut program = Program::start(&args).await;
    let client = program.sessions();
    let mut observed = Observed::now(&client).await;
    let registry_id = observed.subscribed.registry_id.clone();
    batch_create(&client, &[1, 2, 3]).await;
    assert_eq!(created_ids(&observed.events(3).await), [1, 2, 3]);
    let cursor = observed.cursor.clone();
    drop(observed);
    batch_destroy(&client, &[2]).await;
    batch_create(&client, &[4]).await;
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0));

    let program = Program::start(&args).await;
    let client = program.sessions();
    let mut observed = Observed::after(&client, &cursor).await;
    assert_eq!(observed.subscribed.registry_id, registry_id);
    create(&client, 0, 5).await;
    let events = observed.events(3).await;
    let events: Vec<_> = events.iter().map(|event| (event.r#type(), event.session_id)).collect();
    let (created, destroyed) = (SessionEventType::Created, SessionEventType::Destroyed);
    assert_eq!(events, [(destroyed, 2), (created, 4), (created, 5)]);
    let mut snapshot = Observed::snapshot(&client).await;
    let held = snapshot.synced().await;
    assert_eq!(keys(&held), BTreeSet::from([(0, 1), (0, 3), (0, 4), (0, 5)]));
}

#[tokio::test]
async fn a_cursor_older_than_the_log_leads_to_a_reset() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--storage", &url(&folder.path().join("registry")), "--retain-events", "100"];
    let program = Program::start(&args).await;
    let client = program.sessions();
    let observed = Observed::now(&client).await;
    let ids: Vec<i64> = (0..10_000).collect();
    batch_create(&client, &ids).await;
    program.crash().await;
    let program = Program::start(&args).await;
    let mut resumed = Observed::after(&program.sessions(), &observed.cursor).await;
    assert!(matches!(resumed.next().await, Body::Reset(_)));
    assert_eq!(resumed.synced().await.len(), ids.len());
}

#[tokio::test]
async fn a_cursor_from_a_rolled_back_history_leads_to_a_reset() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("registry"), folder.path().join("copy"));
    let args = ["--storage", &url(&path)];
    let stop = async |mut program: Program| {
        program.signal("TERM").await;
        assert_eq!(program.exit_code().await, Some(0));
    };
    let program = Program::start(&args).await;
    let client = program.sessions();
    let mut observed = Observed::now(&client).await;
    batch_create(&client, &[1, 2, 3]).await;
    observed.events(3).await;
    let shared = observed.cursor.clone();
    drop(observed);
    stop(program).await;
    fs::copy(&path, &copy).unwrap();

    // The following changes are lost when the copy is put back.
    let program = Program::start(&args).await;
    let client = program.sessions();
    let mut observed = Observed::after(&client, &shared).await;
    let lost: Vec<i64> = (100..200).collect();
    batch_create(&client, &lost).await;
    assert_eq!(created_ids(&observed.events(lost.len()).await), lost);
    let cursor = observed.cursor.clone();
    drop(observed);
    stop(program).await;
    fs::copy(&copy, &path).unwrap();

    // The new history passes the place in the cursor and continues after another restart.
    let program = Program::start(&args).await;
    let new: Vec<i64> = (200..400).collect();
    batch_create(&program.sessions(), &new).await;
    stop(program).await;
    let program = Program::start(&args).await;
    let client = program.sessions();
    let mut observed = Observed::after(&client, &cursor).await;
    let Body::Reset(reset) = observed.next().await else { panic!("the cursor belongs to another history") };
    assert_eq!(reset.reason(), ResetReason::StorageRestarted);
    let held: BTreeSet<_> = [1, 2, 3].iter().chain(&new).map(|id| (0, *id)).collect();
    assert_eq!(keys(&observed.synced().await), held);
    // Both histories agree up to the place in this cursor.
    let mut observed = Observed::after(&client, &shared).await;
    assert_eq!(created_ids(&observed.events(new.len()).await), new);
}

#[tokio::test]
async fn after_a_restart_leases_get_their_full_ttl_and_interrupted_sweeps_continue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
    let sessions: Vec<_> = (0..2000).map(|id| SessionKey::new(0, id)).collect();
    let (kept, ended) = sessions.split_at(1000);
    let lease = storage.grant_lease(Duration::from_secs(3600), "gateway").await.unwrap();
    let revoked = storage.grant_lease(Duration::from_secs(3600), "gateway").await.unwrap();
    storage.create(kept, Some(lease)).await.unwrap();
    storage.create(ended, Some(revoked)).await.unwrap();
    // The revoke is dropped half-way: the lease has ended, but most of its sessions still exist.
    let cut_short = tokio::time::timeout(Duration::ZERO, storage.revoke_lease(revoked)).await;
    assert!(cut_short.is_err());
    drop(storage);

    let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
    assert_eq!(storage.keep_lease_alive(lease).await.unwrap(), Duration::from_secs(3600));
    storage.keep_lease_alive(revoked).await.unwrap_err();
    let swept = async {
        while storage.has(ended).await.unwrap().contains(&true) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        Err(error) = storage.expire_leases() => panic!("{error}"),
        () = soon(swept) => {}
    }
    assert_eq!(storage.destroy(kept, Some(lease)).await.unwrap(), vec![true; 1000]);
}

#[tokio::test]
async fn a_full_bucket_is_restored_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
    let all = (0..).map(|id| SessionKey::new(7, id));
    let crowd: Vec<_> = all.filter(|session| storage.bucket_of(session) == 0).take(600).collect();
    let (free, leased) = crowd.split_at(300);
    let lease = storage.grant_lease(Duration::from_secs(3600), "gateway").await.unwrap();
    storage.create(free, None).await.unwrap();
    storage.create(leased, Some(lease)).await.unwrap();
    // Enough changes that the log no longer has the ones above, so the bucket is read from its row.
    let churn: Vec<_> = (0..1000).map(|id| SessionKey::new(8, id)).collect();
    for _ in 0..10 {
        storage.create(&churn, None).await.unwrap();
        storage.destroy(&churn, None).await.unwrap();
    }
    drop(storage);

    let storage = FileStorage::open(&path, OPTIONS).await.unwrap();
    let log = storage.log().await.unwrap();
    let all: Vec<u32> = (0..storage.layout().buckets).collect();
    let held = storage.read_buckets(log.registry_id, &[log.partitions[0].end], &all, 1, false).await.unwrap().sessions;
    assert_eq!(held.iter().collect::<BTreeSet<_>>(), crowd.iter().collect());
    assert_eq!(storage.has(&crowd).await.unwrap(), vec![true; crowd.len()]);
    assert_eq!(storage.destroy(&crowd, Some(lease)).await.unwrap(), [vec![false; 300], vec![true; 300]].concat());
    assert_eq!(storage.session_count().await.unwrap(), 300);
}

#[tokio::test]
async fn a_second_server_is_refused_but_a_backup_works_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("registry"), folder.path().join("copy"));
    let program = Program::start(&["--storage", &url(&path)]).await;
    let client = program.sessions();
    let ids: Vec<i64> = (0..5000).collect();
    batch_create(&client, &ids).await;

    let (code, stderr) = fails(serve(&["--storage", &url(&path)])).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains(&format!("another process is using {}: stop it", path.display())), "{stderr}");

    let registry_id = Observed::now(&client).await.subscribed.registry_id;
    let mut going = tokio::task::JoinSet::new();
    going.spawn({
        let client = client.clone();
        async move {
            for id in 10_000.. {
                create(&client, 0, id).await;
            }
        }
    });
    for round in 0..5 {
        let copy = copy.with_extension(round.to_string());
        let ended = run(command(&["backup", text(&path), text(&copy)])).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let copied = FileStorage::open(&copy, OPTIONS).await.unwrap();
        let copied_id = copied.log().await.unwrap().registry_id;
        assert_ne!(copied_id.to_string(), registry_id, "a cursor must not resume in a copy that continues differently");
        let sessions: Vec<_> = ids.iter().map(|id| SessionKey::new(0, *id)).collect();
        assert!(copied.has(&sessions).await.unwrap().into_iter().all(|exists| exists));
        // The sessions that were created during the copy are there without a gap: the copy shows one moment.
        let later = copied.session_count().await.unwrap() as i64 - ids.len() as i64;
        let sessions: Vec<_> = (10_000..10_000 + later).map(|id| SessionKey::new(0, id)).collect();
        assert!(copied.has(&sessions).await.unwrap().into_iter().all(|exists| exists));
    }
    assert!(has(&client, 0, 0).await);
    program.crash().await;
    // No process uses the file, which was not closed cleanly.
    backup(&path, &copy).unwrap();
    let error = backup(&path, &copy).unwrap_err();
    assert!(matches!(error, FileError::Exists { .. }), "{error}");
    let error = backup(&folder.path().join("none"), &copy).unwrap_err();
    assert!(matches!(error, FileError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_not_a_registry_is_refused_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let foreign = format!("{} is not a registry of sessiond", path.display());
    for content in ["x".to_owned(), "not a database at all\n".repeat(1000)] {
        fs::write(&path, &content).unwrap();
        let error = open_error(&path).await;
        assert!(error.starts_with(&foreign), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    fs::remove_file(&path).unwrap();

    let table = TableDefinition::<&str, u64>::new("sessiond");
    let write = |table: TableDefinition<'_, &str, u64>, key: &str, value: u64| {
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(table).unwrap().insert(key, value).unwrap();
        transaction.commit().unwrap();
    };
    write(TableDefinition::new("somebody else's"), "x", 1);
    let error = open_error(&path).await;
    assert!(error.starts_with(&foreign), "{error}");
    fs::remove_file(&path).unwrap();

    drop(FileStorage::open(&path, OPTIONS).await.unwrap());
    write(table, "format", 9);
    let error = open_error(&path).await;
    let of_format =
        |format| format!("{} has format {format}, but this version of sessiond reads format 4", path.display());
    assert!(error.starts_with(&of_format(9)), "{error}");
    for older in [1, 2, 3] {
        write(table, "format", older);
        let error = open_error(&path).await;
        assert!(error.starts_with(&of_format(older)), "{error}");
    }
}

#[tokio::test]
async fn the_error_for_an_unwritable_path_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = open_error(folder.path()).await;
    assert!(error.starts_with(&format!("{} is a folder: name a file in it", folder.path().display())), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open_error(&file.join("in/registry")).await;
    assert!(error.contains(&format!("cannot create the folder {}", file.join("in").display())), "{error}");
    // Not even root may create a file there.
    if Path::new("/sys/kernel").is_dir() {
        let error = open_error(Path::new("/sys/kernel/registry")).await;
        assert!(error.starts_with("cannot write /sys/kernel/registry ("), "{error}");
        assert!(error.ends_with("to the folder /sys/kernel"), "{error}");
    }
}

#[test]
fn file_urls_are_parsed() {
    for (text, url) in [("file:a/b", "file:a/b"), ("file:/a b%20", "file:/a b%20"), ("file:///a", "file:/a")] {
        assert_eq!(text.parse::<StorageUrl>().unwrap().to_string(), url);
    }
    for text in ["file:", "file://"] {
        let error = text.parse::<StorageUrl>().unwrap_err().to_string();
        assert!(error.contains("add the path of a file, as in file:/"), "{error}");
    }
}
