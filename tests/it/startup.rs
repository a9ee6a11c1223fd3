//! What keeps the server from starting, and how it says so.

use std::process::Stdio;

use tokio::{net::TcpListener, process::Command};

use crate::{fake::soon, program::serve};

/// The exit code, and standard error.
async fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = soon(command.stdout(Stdio::piped()).output()).await.expect("the program starts");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_flag() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for (listen, admin, flag) in [(&*taken, "127.0.0.1:0", "listen"), ("127.0.0.1:0", &*taken, "admin-listen")] {
        let (code, stderr) = fails(serve(&["--listen", listen, "--admin-listen", admin])).await;
        assert_eq!(code, Some(4), "{stderr}");
        assert!(stderr.starts_with(&format!("sessiond: cannot listen on {taken} (")), "{stderr}");
        assert!(stderr.ends_with(&format!("choose another address with --{flag}\n")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn an_address_that_is_not_this_machine_s_is_a_port_that_cannot_be_listened_on() {
    // TEST-NET-1 is nobody's.
    let (code, stderr) = fails(serve(&["--listen", "192.0.2.1:0"])).await;
    assert_eq!((code, stderr.lines().count()), (Some(4), 1), "{stderr}");
    assert!(stderr.contains("--listen"), "{stderr}");
}

#[tokio::test]
async fn a_wrong_command_line_or_environment_says_what_would_be_right() {
    let table: [(&[&str], &str); 13] = [
        (&["--nonsense"], "--nonsense"),
        (&["--listen", "localhost"], "--listen <ADDR>"),
        (&["--storage", "mysql://h"], "\"mysql://h\" is no storage: write memory:"),
        (&["--storage", ""], "--storage"),
        (&["--workers", "0"], "--workers <N>"),
        (&["--max-observers", "0"], "--max-observers <N>"),
        (&["--max-message-bytes", "1"], "1024..="),
        (&["--max-batch", "65537"], "1..=65536"),
        (&["--rate-burst", "5"], "--rate-limit"),
        (&["--call-timeout", "0s"], "--call-timeout <DURATION>"),
        (&["--drain-timeout", "soon"], "--drain-timeout <DURATION>"),
        (&["--log-format", "xml"], "text, json"),
        (&["--log", "a=b=c"], "--log"),
    ];
    for (args, says) in table {
        let (code, stderr) = fails(serve(args)).await;
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        assert!(stderr.contains(says), "{args:?}: {stderr}");
        assert!(first.starts_with("error: ") || first.starts_with("sessiond: "), "{args:?}: {stderr}");
    }
    let mut command = serve(&[]);
    command.env("SESSIOND_STORAGE", "disk");
    let (code, stderr) = fails(command).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("\"disk\" is no storage: write memory:"), "{stderr}");
}
