//! The program's client commands against a scripted server.

use std::{process::Stdio, time::Duration};

use sessiond::proto::{self, subscribe_request::Start};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tonic::Status;
use tonic_health::ServingStatus;

use crate::{
    fake::{Fake, created, nowhere, reset, snapshot, soon, synced},
    program::{Ended, command, run, signal},
};

/// Returns a command that runs the program as a client of the server at `addr`.
pub(crate) fn sessiond(addr: &str, args: &[&str]) -> Command {
    let mut command = command(args);
    command.env("SESSIOND_ADDR", addr);
    command
}

pub(crate) fn printed(code: i32, stdout: &str) -> Ended {
    Ended { code: Some(code), stdout: stdout.to_owned(), stderr: String::new() }
}

/// Asserts that the program failed with one line on stderr that starts with `sessiond: ` and contains `needle`.
pub(crate) fn assert_fails(ended: &Ended, code: i32, needle: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.stderr.starts_with("sessiond: ") && ended.stderr.lines().count() == 1, "{ended:?}");
    assert!(ended.stderr.contains(needle), "{ended:?}");
}

pub(crate) fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().expect("stdout is piped")).lines()
}

pub(crate) async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    soon(lines.next_line()).await.expect("stdout is readable").expect("the program prints a line")
}

async fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    soon(child.stderr.take().expect("stderr is piped").read_to_string(&mut text)).await.expect("stderr is UTF-8");
    text
}

pub(crate) async fn exit_code(child: &mut Child) -> Option<i32> {
    soon(child.wait()).await.expect("the program ends").code()
}

#[tokio::test]
async fn ids_are_decimal_or_hexadecimal_and_may_be_negative() {
    let fake = Fake::start().await;
    let ended = run(sessiond(&fake.addr, &["create", "42", "-7", "0xffffffffffffffff", "-9223372036854775808"])).await;
    assert_eq!(ended, printed(0, "42 created\n-7 created\n-1 created\n-9223372036854775808 created\n"));
    let ended = run(sessiond(&fake.addr, &["create", "-1", "--timeout", "20s"])).await;
    assert_eq!(ended, printed(0, "-1 existed already\n"));
    let ended = run(sessiond(&fake.addr, &["destroy", "-7", "8"])).await;
    assert_eq!(ended, printed(0, "-7 destroyed\n8 did not exist\n"));
    let ended = run(sessiond(&fake.addr, &["create", "--auth-key-id", "-3", "42"])).await;
    assert_eq!(ended, printed(0, "42 created\n"));
}

#[tokio::test]
async fn has_exits_with_1_when_any_session_is_missing() {
    let fake = Fake::start().await;
    run(sessiond(&fake.addr, &["create", "1", "2"])).await;
    assert_eq!(run(sessiond(&fake.addr, &["has", "1"])).await, printed(0, "1 exists\n"));
    assert_eq!(run(sessiond(&fake.addr, &["has", "1", "2"])).await, printed(0, "1 exists\n2 exists\n"));
    let ended = run(sessiond(&fake.addr, &["has", "1", "3", "2"])).await;
    assert_eq!(ended, printed(1, "1 exists\n3 missing\n2 exists\n"));
    let ended = run(sessiond(&fake.addr, &["has", "1", "--auth-key-id", "5"])).await;
    assert_eq!(ended, printed(1, "1 missing\n"));
}

#[tokio::test]
async fn json_lines_have_ids_as_strings() {
    let fake = Fake::start().await;
    let args = ["create", "9007199254740993", "--auth-key-id", "5", "--format", "json"];
    let line = "{\"session_id\":\"9007199254740993\",\"auth_key_id\":\"5\",\"created\":true}\n";
    assert_eq!(run(sessiond(&fake.addr, &args)).await, printed(0, line));
    let mut command = sessiond(&fake.addr, &["has", "1"]);
    command.env("SESSIOND_FORMAT", "json").env("SESSIOND_AUTH_KEY_ID", "0x5");
    let line = "{\"session_id\":\"1\",\"auth_key_id\":\"5\",\"exists\":false}\n";
    assert_eq!(run(command).await, printed(1, line));
}

#[tokio::test]
async fn ids_on_standard_input_are_sent_as_they_arrive() {
    let fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["create", "1", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = lines(&mut child);
    assert_eq!(line(&mut stdout).await, "1 created");
    for id in ["-5", "6"] {
        stdin.write_all(format!("{id}\n").as_bytes()).await.unwrap();
        assert_eq!(line(&mut stdout).await, format!("{id} created"));
    }
    let many: String = (100..30_100).map(|id| format!("{id}\n")).collect();
    let (written, ()) = tokio::join!(
        async {
            let written = stdin.write_all(many.as_bytes()).await;
            drop(stdin);
            written
        },
        async {
            for id in 100..30_100 {
                assert_eq!(line(&mut stdout).await, format!("{id} created"));
            }
        }
    );
    written.unwrap();
    assert_eq!(exit_code(&mut child).await, Some(0));
    assert!(fake.batches().len() < 3000, "{} calls for 30,000 ids", fake.batches().len());
}

#[tokio::test]
async fn the_error_for_a_bad_line_on_standard_input_names_the_line() {
    let fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["create", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1\n2\nthree\n4\n").await.unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 created\n2 created\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("sessiond: standard input, line 3: \"three\" is not an id"), "{stderr}");
}

#[tokio::test]
async fn a_closed_pipe_is_not_an_error() {
    let mut fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["create", "1", "2"]).stdin(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(stderr(&mut child).await, "");
    assert_eq!(exit_code(&mut child).await, Some(0));

    let mut child = sessiond(&fake.addr, &["watch", "--format", "json"]).spawn().unwrap();
    drop(child.stdout.take());
    let stream = fake.stream().await.accept("c0").await;
    stream.gone().await;
    assert_eq!(stderr(&mut child).await, "");
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn bad_arguments_exit_with_2_and_failures_with_3() {
    let fake = Fake::start().await;
    let ended = run(sessiond(&nowhere().await, &["create", "1"])).await;
    assert_fails(&ended, 3, "--addr");
    fake.refuse(Status::permission_denied("not\nallowed: ask for a token"));
    let ended = run(sessiond(&fake.addr, &["create", "1"])).await;
    assert_fails(&ended, 3, "PERMISSION_DENIED: not allowed: ask for a token");
    fake.stop_answering();
    let ended = run(sessiond(&fake.addr, &["create", "1", "--timeout", "100ms"])).await;
    assert_fails(&ended, 3, "100ms");
    for args in [&["create"][..], &["has", "x"], &["nonsense"], &["has", "1", "--addr", "localhost:1"]] {
        let ended = run(sessiond(&fake.addr, args)).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
    }
}

#[tokio::test]
async fn help_lists_the_exit_codes() {
    let ended = run(sessiond("", &["--help"])).await;
    assert_eq!(ended.code, Some(0));
    for code in 0..=5 {
        assert!(ended.stdout.contains(&format!("\n  {code}  ")), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn health_queries_the_standard_health_service() {
    let fake = Fake::start().await;
    assert_eq!(run(sessiond(&fake.addr, &["health"])).await, printed(0, "SERVING\n"));
    fake.health.set_service_status("", ServingStatus::NotServing).await;
    assert_fails(&run(sessiond(&fake.addr, &["health"])).await, 1, "NOT_SERVING");
    assert_fails(&run(sessiond(&fake.addr, &["health", "--service", "x.Y"])).await, 1, "\"x.Y\"");
    assert_fails(&run(sessiond(&nowhere().await, &["health"])).await, 1, "--addr");
}

#[tokio::test]
#[cfg(unix)]
async fn watch_prints_json_lines_and_resumes() {
    let mut fake = Fake::start().await;
    let args = ["watch", "--snapshot", "--format", "json", "--session", "-5", "--session", "6", "--type", "created"];
    let mut child = sessiond(&fake.addr, &args).spawn().unwrap();
    let mut stdout = lines(&mut child);
    let call = fake.stream().await;
    assert_eq!(call.request.start, Some(Start::Snapshot(true)));
    assert_eq!(call.request.session_ids, [-5, 6]);
    assert_eq!(call.request.types, [i32::from(proto::SessionEventType::Created)]);
    let stream = call.accept("c0").await;
    let subscribed = |cursor| {
        format!("{{\"type\":\"subscribed\",\"registry_id\":\"fake\",\"heartbeat_ms\":15000,\"cursor\":\"{cursor}\"}}")
    };
    assert_eq!(line(&mut stdout).await, subscribed("c0"));
    stream.send("", snapshot(&[-5])).await;
    assert_eq!(line(&mut stdout).await, r#"{"type":"snapshot","session_id":"-5","auth_key_id":"0"}"#);
    stream.send("c1", synced(1)).await;
    assert_eq!(line(&mut stdout).await, r#"{"type":"synced","session_count":"1","cursor":"c1"}"#);
    stream.send("c2", created(&[6, 6])).await;
    assert_eq!(line(&mut stdout).await, r#"{"type":"created","session_id":"6","auth_key_id":"7"}"#);
    assert_eq!(line(&mut stdout).await, r#"{"type":"created","session_id":"6","auth_key_id":"7","cursor":"c2"}"#);
    stream.fail(Status::unavailable("draining")).await;
    let disconnected = line(&mut stdout).await;
    let start = r#"{"type":"disconnected","error":"the server answered UNAVAILABLE: draining","retry_in_ms":"#;
    assert!(disconnected.starts_with(start), "{disconnected}");

    let call = fake.stream().await;
    assert_eq!(call.request.start, Some(Start::Cursor("c2".to_owned())));
    let stream = call.accept("c2").await;
    assert_eq!(line(&mut stdout).await, subscribed("c2"));
    stream.send("", reset(proto::ResetReason::StorageRestarted)).await;
    assert_eq!(line(&mut stdout).await, r#"{"type":"reset","reason":"storage_restarted"}"#);
    signal(&child, "TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
    assert_eq!(stderr(&mut child).await, "");
}

#[tokio::test]
#[cfg(unix)]
async fn watch_prints_events_in_columns_and_status_on_stderr() {
    let mut fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["watch", "--after", "c0"]).spawn().unwrap();
    let mut stdout = lines(&mut child);
    let call = fake.stream().await;
    assert_eq!(call.request.start, Some(Start::Cursor("c0".to_owned())));
    let stream = call.accept("c0").await;
    stream.send("c1", created(&[6])).await;
    assert_eq!(line(&mut stdout).await, "created                      6                    7");
    signal(&child, "INT").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
    let expected =
        format!("sessiond: watching registry fake at {}\nsessiond: stopped; resume with --after c1\n", fake.addr);
    assert_eq!(stderr(&mut child).await, expected);
}

#[tokio::test]
#[cfg(unix)]
async fn watch_ends_on_sigterm_although_nobody_reads_its_output() {
    let mut fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["watch"]).spawn().unwrap();
    let stream = fake.stream().await.accept("c0").await;
    let ids: Vec<i64> = (0..1000).collect();
    // Sends until every buffer on the way is full: until a send is blocked for 300 ms, or after far more events than
    // pipes and flow control hold.
    for _ in 0..2000 {
        let sent = tokio::time::timeout(Duration::from_millis(300), stream.send("c1", created(&ids))).await;
        if sent.is_err() {
            break;
        }
    }
    signal(&child, "TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn watch_exits_when_the_server_rejects_its_request() {
    let mut fake = Fake::start().await;
    let mut child = sessiond(&fake.addr, &["watch", "--after", "nonsense"]).spawn().unwrap();
    fake.stream().await.refuse(Status::invalid_argument("cursor: no cursor: leave --after out"));
    assert_eq!(exit_code(&mut child).await, Some(3));
    let text = stderr(&mut child).await;
    assert_eq!(text, "sessiond: the server answered INVALID_ARGUMENT: cursor: no cursor: leave --after out\n");
}
