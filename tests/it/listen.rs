//! The addresses that a server listens on.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::Path,
    process::Stdio,
};

use sessiond::proto::SubscribeRequest;
use tokio::process::Child;
use tonic::transport::Endpoint;

use crate::{
    certificates::{Authority, text},
    cli::{printed, sessiond},
    fake::soon,
    observed::Observed,
    program::{Program, fails, run, serve, signal},
    server::Sessions,
    sessions::{create, has},
};

/// Starts a server on a Unix socket, and waits until it serves.
async fn on_unix(url: &str, args: &[&str]) -> Child {
    let mut command = serve(&[&["--listen", url], args].concat());
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    soon(async {
        while run(sessiond(url, &["health"])).await.code != Some(0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    child
}

async fn terminate(child: &mut Child) -> Option<i32> {
    signal(child, "TERM").await;
    soon(child.wait()).await.unwrap().code()
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[tokio::test]
async fn the_server_listens_on_a_host_name() {
    let program = Program::start_on("localhost:0", &[]).await;
    assert!(program.addr.ip().is_loopback());
    assert!(create(&program.sessions(), 0, 1).await);
    let (code, error) = fails(serve(&["--listen", "nobody.invalid:50051"])).await;
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("nobody.invalid:50051") && error.contains("--listen"), "{error}");
}

#[tokio::test]
async fn clients_and_commands_work_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessiond.sock");
    let url = format!("unix:{}", path.display());
    let mut server = on_unix(&url, &[]).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

    let client = Sessions::new(Endpoint::from_shared(url.clone()).unwrap().connect_lazy());
    let mut observed = Observed::start(&client, SubscribeRequest::default()).await;
    assert!(create(&client, 0, 1).await);
    assert_eq!(observed.events(1).await[0].session_id, 1);
    assert_eq!(run(sessiond(&url, &["has", "1"])).await.code, Some(0));
    assert_eq!(run(sessiond(&format!("unix://{}", path.display()), &["has", "2"])).await.code, Some(1));
    assert_eq!(run(sessiond(&url, &["health"])).await, printed(0, "SERVING\n"));
    let bench = ["bench", "--duration", "200ms", "--warmup", "50ms", "--format", "json"];
    let ended = run(sessiond(&url, &bench)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");

    // A second server cannot take the socket, which is removed when the server exits.
    let (code, error) = fails(serve(&["--listen", &url])).await;
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("another server listens on this socket"), "{error}");
    assert!(has(&client, 0, 1).await);
    assert_eq!(terminate(&mut server).await, Some(0));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_other_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessiond.sock");
    let url = format!("unix:{}", path.display());
    let mut server = on_unix(&url, &[]).await;
    soon(server.kill()).await.unwrap();
    assert!(is_socket(&path), "a killed server leaves its socket behind");
    let mut server = on_unix(&url, &[]).await;

    // A socket that another process has put in its place is not removed.
    fs::remove_file(&path).unwrap();
    let others = UnixListener::bind(&path).unwrap();
    assert_eq!(terminate(&mut server).await, Some(0));
    assert!(is_socket(&path));
    drop(others);

    fs::remove_file(&path).unwrap();
    fs::write(&path, "a letter").unwrap();
    let (code, error) = fails(serve(&["--listen", &url])).await;
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "a letter");
}

#[tokio::test]
async fn a_unix_socket_with_tls_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Authority::new(folder.path(), "ours").issue("server", &["localhost"]);
    let url = format!("unix:{}", folder.path().join("sessiond.sock").display());
    let tls = ["--tls-cert", text(&certificate.cert), "--tls-key", text(&certificate.key)];
    let (code, error) = fails(serve(&[&["--listen", &url], &tls[..]].concat())).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("see --tls-cert"), "{error}");
}
