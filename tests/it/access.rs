//! Access control: tokens, certificates, scopes, and their withdrawal.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use http::Request;
use sessiond::{
    access::NewToken,
    client::{Client, ClientError, LeaseQuery, WatchOptions, WatchStart, WatchUpdate},
    proto::HasSessionRequest,
    session::SessionKey,
};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    certificates::{Authority, Issued, text},
    cli::{assert_fails, printed, sessiond},
    fake::soon,
    program::{Program, fails, run, serve},
    raw::{Raw, SERVICE, answer, framed, grpc},
};

const SESSION: SessionKey = SessionKey::new(0, 1);

/// A server with an access file.
struct Guarded {
    program: Program,
    list: PathBuf,
    _folder: TempDir,
}

impl Guarded {
    async fn start(lines: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("access");
        fs::write(&list, lines.join("\n")).unwrap();
        let program = Program::start(&["--access-file", text(&list)]).await;
        Self { program, list, _folder: folder }
    }

    fn url(&self) -> String {
        format!("http://{}", self.program.addr)
    }

    fn client(&self, token: &NewToken) -> Client {
        Client::builder(&self.url()).unwrap().token(token.token()).unwrap().connect_lazy().unwrap()
    }

    /// Replaces the access file and waits until the server has read it.
    async fn change(&self, lines: &[String]) {
        let before = self.program.log().matches("read again").count();
        fs::write(&self.list, lines.join("\n")).unwrap();
        crate::server::eventually("the server reads the access file again", || {
            self.program.log().matches("read again").count() > before
        })
        .await;
    }

    fn command(&self, args: &[&str]) -> Command {
        sessiond(&self.url(), args)
    }
}

fn token(name: &str) -> NewToken {
    NewToken::generate(name).unwrap()
}

fn line(token: &NewToken, scopes: &str) -> String {
    token.line(scopes.parse().unwrap())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, ClientError>, code: Code, reason: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.status().map(tonic::Status::code), Some(code), "{error}");
    assert_eq!(error.reason().as_deref(), Some(reason), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn each_scope_allows_its_calls_and_no_others() {
    let (reads, writes, observes) = (token("reads"), token("writes"), token("observes"));
    let lines = [line(&reads, "read"), line(&writes, "write"), line(&observes, "observe")];
    let guarded = Guarded::start(&lines).await;
    for (index, token) in [&reads, &writes, &observes].into_iter().enumerate() {
        let client = guarded.client(token);
        let mut results = [
            vec![
                soon(client.has(SESSION)).await.map(drop),
                soon(client.batch_has(&[SESSION])).await.map(drop),
                soon(client.lookup(SESSION)).await.map(drop),
                soon(client.batch_lookup(&[SESSION])).await.map(drop),
                soon(client.list_leases(LeaseQuery::default())).await.map(drop),
            ],
            vec![
                soon(client.create(SESSION)).await.map(drop),
                soon(client.batch_create(&[SESSION])).await.map(drop),
                soon(client.destroy(SESSION)).await.map(drop),
                soon(client.batch_destroy(&[SESSION])).await.map(drop),
                soon(client.grant_lease(Duration::from_secs(9), "")).await.map(drop),
            ],
            vec![soon(client.watch(WatchOptions::snapshot()).next()).await.map(drop)],
        ];
        for allowed in std::mem::take(&mut results[index]) {
            allowed.unwrap();
        }
        for refused in results.into_iter().flatten() {
            assert_refused(refused, Code::PermissionDenied, "SCOPE_MISSING");
        }
    }
}

#[tokio::test]
async fn unauthenticated_callers_may_only_check_health() {
    let (reads, admin) = (token("reads"), token("admin"));
    let guarded = Guarded::start(&[line(&reads, "read"), line(&admin, "admin")]).await;
    let stranger = Client::connect_lazy(&guarded.url()).unwrap();
    assert_refused(soon(stranger.has(SESSION)).await, Code::Unauthenticated, "CREDENTIALS_MISSING");
    soon(HealthClient::new(stranger.channel()).check(HealthCheckRequest::default())).await.unwrap();

    let mut raw = Raw::connect(guarded.program.addr).await;
    let has = framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 });
    let known = token("known");
    let with_other_name = format!("admin.{}", reads.token().rsplit_once('.').unwrap().1);
    for value in [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        reads.token(),
        &format!("Bearer {}", known.token()),
        &format!("Bearer {}0", reads.token()),
        &format!("Bearer {}", &reads.token()[..reads.token().len() - 1]),
        &format!("Bearer {with_other_name}"),
        &format!("Bearer {}", "x".repeat(8000)),
    ] {
        let mut request = grpc(&format!("{SERVICE}/HasSession"));
        request.headers_mut().insert("authorization", value.parse().unwrap());
        let status = raw.send(request, has.clone()).await.unwrap().grpc.unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{value}");
    }
    let mut with = async |path: &str, token: Option<&NewToken>| {
        let mut request: Request<()> = grpc(path);
        if let Some(token) = token {
            let value = format!("bearer  {}", token.token());
            request.headers_mut().insert("authorization", value.parse().unwrap());
        }
        raw.send(request, has.clone()).await.unwrap().grpc.unwrap().code()
    };
    assert_eq!(with(&format!("{SERVICE}/HasSession"), Some(&reads)).await, Code::Ok);
    // Unauthenticated callers cannot find out which methods exist.
    assert_eq!(with(&format!("{SERVICE}/Nonsense"), None).await, Code::Unauthenticated);
    assert_eq!(with(&format!("{SERVICE}/Nonsense"), Some(&reads)).await, Code::Unimplemented);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(with(reflection, None).await, Code::Unauthenticated);
    assert_eq!(with(reflection, Some(&reads)).await, Code::PermissionDenied);
    assert_ne!(with(reflection, Some(&admin)).await, Code::PermissionDenied);
}

#[tokio::test]
async fn withdrawing_a_token_or_scope_ends_streams_and_refuses_calls() {
    let (stays, goes) = (token("stays"), token("goes"));
    let lines = [line(&stays, "read,observe"), line(&goes, "read,observe")];
    let guarded = Guarded::start(&lines).await;
    let clients = [guarded.client(&stays), guarded.client(&goes)];
    let mut watches = clients.each_ref().map(|client| client.watch(WatchOptions::from_start(WatchStart::Now)));
    for watch in &mut watches {
        assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    }
    // An invalid access file changes nothing.
    fs::write(&guarded.list, "tokne").unwrap();
    guarded.program.logs("is not a kind of entry").await;
    assert!(soon(clients[1].has(SESSION)).await.is_ok());

    guarded.change(&lines[..1]).await;
    let [stayed, gone] = &mut watches;
    assert_refused(soon(gone.next()).await, Code::Unauthenticated, "TOKEN_UNKNOWN");
    assert_refused(soon(clients[1].has(SESSION)).await, Code::Unauthenticated, "TOKEN_UNKNOWN");
    guarded.program.metric_comes_to("sessiond_observers", 1).await;

    // Removing a scope ends a stream that needs it. Other changes to the access file leave the stream alone.
    let writes = token("writes");
    guarded.change(&[line(&stays, "observe"), line(&writes, "write")]).await;
    assert!(soon(guarded.client(&writes).create(SESSION)).await.unwrap());
    assert!(matches!(soon(stayed.next()).await.unwrap(), WatchUpdate::Events(_)));
    assert_refused(soon(clients[0].has(SESSION)).await, Code::PermissionDenied, "SCOPE_MISSING");
    guarded.change(&[line(&stays, "read")]).await;
    assert_refused(soon(stayed.next()).await, Code::PermissionDenied, "SCOPE_MISSING");
    guarded.program.metric_comes_to("sessiond_observers", 0).await;
}

#[tokio::test]
async fn a_client_reads_its_token_again_when_the_file_changes() {
    let (old, new) = (token("old"), token("new"));
    let guarded = Guarded::start(&[line(&old, "read")]).await;
    let file = guarded.list.with_file_name("token");
    let builder = || Client::builder(&guarded.url()).unwrap();
    assert!(matches!(builder().token_file(&file), Err(ClientError::InvalidTokenFile { .. })));
    fs::write(&file, " \n").unwrap();
    assert!(matches!(builder().token_file(&file), Err(ClientError::InvalidToken)));
    fs::write(&file, format!("{}\n", old.token())).unwrap();
    let client = builder().token_file(&file).unwrap().connect_lazy().unwrap();
    assert!(!client.has(SESSION).await.unwrap());
    guarded.change(&[line(&new, "read")]).await;
    let error = client.has(SESSION).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::Unauthenticated);
    // A file that is being written must not lose the token.
    fs::write(&file, "").unwrap();
    client.has(SESSION).await.unwrap_err();
    fs::write(&file, new.token()).unwrap();
    assert!(!client.has(SESSION).await.unwrap());
}

#[tokio::test]
async fn a_watch_continues_when_its_token_is_rotated() {
    let (old, new) = (token("old"), token("new"));
    let guarded = Guarded::start(&[line(&old, "observe")]).await;
    let file = guarded.list.with_file_name("token");
    fs::write(&file, old.token()).unwrap();
    let client = Client::builder(&guarded.url()).unwrap().token_file(&file).unwrap().connect_lazy().unwrap();
    let mut watch = client.watch(WatchOptions::from_start(WatchStart::Now));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    fs::write(&file, new.token()).unwrap();
    guarded.change(&[line(&new, "observe")]).await;
    let update = soon(watch.next()).await.unwrap();
    assert!(matches!(update, WatchUpdate::Disconnected { retry_in: Duration::ZERO, .. }), "{update:?}");
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Heartbeat));
    // The file has no newer token now, so this is an error.
    guarded.change(&[line(&old, "observe")]).await;
    assert_refused(soon(watch.next()).await, Code::Unauthenticated, "TOKEN_UNKNOWN");
}

#[tokio::test]
async fn a_call_in_flight_finishes_after_its_token_is_withdrawn() {
    let token = token("goes");
    let guarded = Guarded::start(&[line(&token, "read")]).await;
    let mut raw = Raw::connect(guarded.program.addr).await;
    let has = framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 });
    let request = || {
        let mut request = grpc(&format!("{SERVICE}/HasSession"));
        request.headers_mut().insert("authorization", format!("Bearer {}", token.token()).parse().unwrap());
        request
    };
    let (response, mut body) = raw.open(request()).await;
    // An answer to a later call shows that the server has received the open one.
    assert_eq!(raw.send(request(), has.clone()).await.unwrap().grpc.unwrap().code(), Code::Ok);
    guarded.change(&[]).await;
    assert_eq!(raw.send(request(), has.clone()).await.unwrap().grpc.unwrap().code(), Code::Unauthenticated);
    body.send_data(has, true).unwrap();
    assert_eq!(soon(answer(response)).await.unwrap().grpc.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn a_token_that_expires_ends_its_streams() {
    let token = token("short");
    let until = humantime::format_rfc3339_millis(SystemTime::now() + Duration::from_secs(3));
    let guarded = Guarded::start(&[format!("{} until={until}", line(&token, "observe"))]).await;
    let mut watch = guarded.client(&token).watch(WatchOptions::from_start(WatchStart::Now));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    assert_refused(soon(watch.next()).await, Code::Unauthenticated, "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_certificate_has_the_scopes_of_all_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let server = ours.issue("server", &["localhost", "127.0.0.1"]);
    let token = token("token");
    let list = folder.path().join("access");
    let lines =
        ["certificate spiffe://fleet/gateway write", "certificate reader.example read", &line(&token, "observe")];
    fs::write(&list, lines.join("\n")).unwrap();
    let program = Program::start(&[
        "--tls-cert",
        text(&server.cert),
        "--tls-key",
        text(&server.key),
        "--tls-client-ca",
        text(&ours.ca),
        "--access-file",
        text(&list),
    ])
    .await;
    let builder = |identity: &Issued| {
        let (cert, key) = (fs::read(&identity.cert).unwrap(), fs::read(&identity.key).unwrap());
        let builder = Client::builder(&format!("https://{}", program.addr)).unwrap();
        builder.tls_ca(fs::read(&ours.ca).unwrap()).tls_identity(cert, key)
    };
    let gateway = ours.issue("gateway", &["spiffe://fleet/gateway"]);
    let client = builder(&gateway).connect_lazy().unwrap();
    assert!(soon(client.create(SESSION)).await.unwrap());
    assert_refused(soon(client.has(SESSION)).await, Code::PermissionDenied, "SCOPE_MISSING");
    let both = ours.issue("both", &["other.example", "reader.example", "spiffe://fleet/gateway"]);
    let client = builder(&both).connect_lazy().unwrap();
    assert!(soon(client.has(SESSION)).await.unwrap() && !soon(client.create(SESSION)).await.unwrap());
    let stranger = ours.issue("stranger", &["other.example"]);
    let client = builder(&stranger).connect_lazy().unwrap();
    assert_refused(soon(client.has(SESSION)).await, Code::PermissionDenied, "CERTIFICATE_UNKNOWN");
    // A token takes precedence over the certificate.
    let client = builder(&gateway).token(token.token()).unwrap().connect_lazy().unwrap();
    assert!(soon(client.watch(WatchOptions::snapshot()).next()).await.is_ok());
    assert_refused(soon(client.create(SESSION)).await, Code::PermissionDenied, "SCOPE_MISSING");
}

#[tokio::test]
async fn token_new_writes_the_token_to_a_file_with_mode_0600_and_never_overwrites() {
    let guarded = Guarded::start(&[]).await;
    let file = guarded.list.with_file_name("new-token");
    let args = ["token", "new", "--name", "gateway-1", "--scopes", "read,write", "--out", text(&file)];
    let new = run(guarded.command(&args)).await;
    assert_eq!(new.code, Some(0), "{new:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "independent of the umask");
    // The file has no newline at its end, so clients in other languages can send its content as it is.
    let token = fs::read_to_string(&file).unwrap();
    assert!(token.starts_with("gateway-1.") && token.bytes().all(|byte| byte.is_ascii_graphic()), "{token:?}");
    let line = new.stdout.trim_end();
    assert!(line.starts_with("token gateway-1 read,write sha256:") && !line.contains('\n'), "{line}");
    assert!(!new.stdout.contains(&token) && !new.stderr.contains(&token), "the token is printed nowhere");
    guarded.change(&[line.to_owned()]).await;
    let created = run(guarded.command(&["create", "5", "--token-file", text(&file)])).await;
    assert_eq!(created, printed(0, "5 created\n"));

    // An existing file is not overwritten: it may hold a token that is in use.
    let again = run(guarded.command(&args)).await;
    assert_eq!((again.code, &*again.stdout), (Some(1), ""), "{again:?}");
    assert!(again.stderr.contains(text(&file)) && again.stderr.contains("exists"), "{again:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), token);
}

#[tokio::test]
async fn token_new_prints_a_token_that_every_command_accepts() {
    let guarded = Guarded::start(&[]).await;
    let new = run(guarded.command(&["token", "new", "--name", "gateway-1", "--scopes", "read,write,observe"])).await;
    assert_eq!(new.code, Some(0), "{new:?}");
    let (token, line) = new.stdout.trim_end().split_once('\n').unwrap();
    assert!(line.starts_with("token gateway-1 read,write,observe sha256:") && !line.contains(&token[10..]), "{line}");
    guarded.change(&[line.to_owned()]).await;

    let file = guarded.list.with_file_name("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    assert_eq!(run(guarded.command(&["create", "5", "--token", token])).await, printed(0, "5 created\n"));
    let ended = run(guarded.command(&["has", "5", "--token-file", text(&file)])).await;
    assert_eq!(ended, printed(0, "5 exists\n"));
    let mut bench = guarded.command(&["bench", "--duration", "200ms", "--warmup", "0s", "--sessions", "2000"]);
    bench.env("SESSIOND_TOKEN", token);
    let ended = run(bench).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(run(guarded.command(&["health"])).await, printed(0, "SERVING\n"));

    assert_fails(&run(guarded.command(&["has", "5"])).await, 3, "UNAUTHENTICATED");
    assert_fails(&run(guarded.command(&["has", "5", "--token", "a.b"])).await, 3, "UNAUTHENTICATED");
    assert_fails(&run(guarded.command(&["has", "5", "--token", "a b"])).await, 2, "the token is malformed");
    assert_fails(&run(guarded.command(&["has", "5", "--token-file", "/nowhere"])).await, 2, "see --token-file");
    assert_fails(
        &run(guarded.command(&["token", "new", "--name", "a b", "--scopes", "read"])).await,
        2,
        "is not a token name",
    );
    let help = run(guarded.command(&["has", "--help", "--token", token])).await;
    assert!(!help.stdout.contains(token));
    assert!(!guarded.program.log().contains(token));
}

#[tokio::test]
async fn a_server_does_not_start_with_an_invalid_access_file() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("access");
    fs::write(&list, "# nobody\ntoken a raed").unwrap();
    for (path, says) in
        [("/nowhere", "see --access-file"), (text(&list), "line 2: \"raed\" is not a scope"), ("/dev/zero", "bytes")]
    {
        let (code, stderr) = fails(serve(&["--access-file", path])).await;
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[tokio::test]
async fn a_server_on_a_public_address_warns_about_missing_authentication_and_tls() {
    Program::start_on("0.0.0.0:0", &[]).await.logs("NO AUTHENTICATION").await;
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("access");
    fs::write(&list, "").unwrap();
    let guarded = Program::start_on("0.0.0.0:0", &["--access-file", text(&list)]).await;
    guarded.logs("NO TLS").await;
    assert!(!guarded.log().contains("NO AUTHENTICATION"));
}
