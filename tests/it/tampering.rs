//! What other programs may do to a registry's file, and how the server treats files that are not its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tonic::Code;

use crate::{
    fake::soon,
    program::{Ended, Program, SESSIOND, command, get, run, serve},
    sessions::{batch_create, create, has},
};

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

fn sh(script: &str, folder: &Path) {
    let status = Command::new("sh").arg("-ec").arg(script).current_dir(folder).status().unwrap();
    assert!(status.success(), "{script}");
}

async fn backup(folder: &Path, from: &str, to: &str) -> Ended {
    let mut backup = command(&["backup", from, to]);
    backup.current_dir(folder);
    run(backup).await
}

async fn is_refused(program: &Program, id: i64) -> bool {
    let request = sessiond::proto::CreateSessionRequest { session_id: Some(id), ..Default::default() };
    match soon(program.sessions().create_session(request)).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            true
        }
    }
}

#[tokio::test]
async fn a_server_whose_file_is_removed_or_replaced_refuses_changes_and_reports_it() {
    let scripts = [
        "rm registry",
        "mv registry elsewhere",
        ": > registry",
        "truncate -s 4096 registry",
        "cp other registry",
        "mv other registry",
        "dd if=/dev/zero of=registry bs=4096 count=1 conv=notrunc 2>&1",
    ];
    for script in scripts {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let mut program = Program::start(&["--storage", &url(&path)]).await;
        let client = program.sessions();
        batch_create(&client, &(0..100).collect::<Vec<_>>()).await;
        assert_eq!(backup(folder.path(), "registry", "other").await.code, Some(0));
        sh(script, folder.path());
        let left = fs::read(&path).ok();
        assert!(is_refused(&program, 1000).await, "a create succeeded after: {script}");
        let began = Instant::now();
        loop {
            let writable = get(program.admin, "/writable").await;
            if writable.status == 503 && writable.body.contains("the registry's file is not the one that was opened") {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{}", writable.body);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(get(program.admin, "/ready").await.status, 200);
        assert!(has(&client, 0, 99).await, "reads continue");
        assert!(is_refused(&program, 1001).await, "after: {script}");
        program.signal("TERM").await;
        assert_eq!(program.exit_code().await, Some(0));
        assert!(fs::read(&path).ok() == left, "the server wrote to the path after: {script}");
    }
}

#[tokio::test]
async fn files_with_names_similar_to_the_registrys_are_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let foreign = ["copy.new", ".registry.tmp"].map(|name| folder.path().join(name));
    foreign.iter().for_each(|path| fs::write(path, "not yours").unwrap());
    let args = ["--storage", &url(&path)];
    let program = Program::start(&args).await;
    create(&program.sessions(), 0, 1).await;
    for copy in ["registry.new", "copy"] {
        assert_eq!(backup(folder.path(), "registry", copy).await.code, Some(0));
        let refused = backup(folder.path(), "registry", copy).await;
        assert!(refused.stderr.contains("already exists"), "{refused:?}");
    }
    program.crash().await;
    let copied = fs::read(folder.path().join("registry.new")).unwrap();
    let program = Program::start(&args).await;
    assert!(has(&program.sessions(), 0, 1).await);
    drop(program);
    assert!(fs::read(folder.path().join("registry.new")).unwrap() == copied, "the backup has changed");
    for path in foreign {
        assert_eq!(fs::read_to_string(&path).unwrap(), "not yours", "{}", path.display());
    }
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".registry.tmp", "copy", "copy.new", "registry", "registry.new"]);
}

#[tokio::test]
async fn a_start_succeeds_after_the_first_one_was_killed_at_any_moment() {
    for _ in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        let storage = url(&folder.path().join("in/registry"));
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut first = serve(&[&ports[..], &["--storage", &storage]].concat()).spawn().unwrap();
        let created = async {
            // Kill at a random moment from the creation of the folder until after that of the registry.
            while !folder.path().join("in").exists() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..8000))).await;
        };
        soon(created).await;
        soon(first.kill()).await.unwrap();
        let program = Program::start(&["--storage", &storage]).await;
        assert!(create(&program.sessions(), 0, 1).await);
    }
}

#[tokio::test]
async fn a_registry_is_private_to_its_user_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    let created = folder.path().join("a/b");
    let path = created.join("registry");
    let program = Program::start_limited("-c 0 && umask 000", &["--storage", &url(&path)]).await;
    create(&program.sessions(), 0, 1).await;
    let status = Command::new("sh")
        .args(["-c", "umask 000 && exec \"$0\" backup registry copy", SESSIOND])
        .current_dir(&created)
        .status()
        .unwrap();
    assert!(status.success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(&path), mode(&created.join("copy"))], [0o600; 2]);
    assert_eq!([mode(&created), mode(&folder.path().join("a"))], [0o700; 2]);
}

#[tokio::test]
async fn a_symlink_to_a_registry_stays_a_symlink() {
    let folder = tempfile::tempdir().unwrap();
    sh("mkdir disk && ln -s disk/registry registry", folder.path());
    let path = folder.path().join("registry");
    let args = ["--storage", &url(&path)];
    let program = Program::start(&args).await;
    create(&program.sessions(), 0, 1).await;
    program.crash().await;
    assert!(fs::read_link(&path).is_ok() && folder.path().join("disk/registry").is_file());
    let program = Program::start(&args).await;
    assert!(has(&program.sessions(), 0, 1).await);
}
