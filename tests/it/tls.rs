//! TLS: which clients are accepted, how others are refused, and certificates that change.

use std::fs;

use sessiond::{
    client::{Client, ClientBuilder, ClientError, WatchOptions, WatchStart, WatchUpdate},
    session::SessionKey,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    certificates::{Authority, Issued, text},
    cli::{assert_fails, printed, sessiond},
    fake::soon,
    program::{Ended, Program, fails, run, serve},
};

const SESSION: SessionKey = SessionKey::new(0, 1);

/// A server with TLS, and the certificate authority for its certificate and its clients'.
struct Secure {
    program: Program,
    ours: Authority,
    server: Issued,
    folder: TempDir,
}

impl Secure {
    async fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ours = Authority::new(folder.path(), "ours");
        let server = ours.issue("server", &["localhost", "127.0.0.1"]);
        let args = [&["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)], args].concat();
        Self { program: Program::start(&args).await, ours, server, folder }
    }

    /// Starts a server that requires client certificates.
    async fn start_mutual(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ours = Authority::new(folder.path(), "ours");
        let server = ours.issue("server", &["localhost", "127.0.0.1"]);
        let tls = ["--tls-cert", text(&server.cert), "--tls-key", text(&server.key), "--tls-client-ca", text(&ours.ca)];
        let args = [&tls, args].concat();
        Self { program: Program::start(&args).await, ours, server, folder }
    }

    fn url(&self) -> String {
        format!("https://{}", self.program.addr)
    }

    /// Returns a builder for a client that trusts our authority.
    fn builder(&self) -> ClientBuilder {
        Client::builder(&self.url()).unwrap().tls_ca(fs::read(&self.ours.ca).unwrap())
    }

    fn client(&self) -> Client {
        self.builder().connect_lazy().unwrap()
    }

    fn client_as(&self, identity: &Issued) -> Client {
        let (cert, key) = (fs::read(&identity.cert).unwrap(), fs::read(&identity.key).unwrap());
        self.builder().tls_identity(cert, key).connect_lazy().unwrap()
    }

    /// Returns a client command that trusts our authority through its environment.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = sessiond(&self.url(), args);
        command.env("SESSIOND_TLS_CA", &self.ours.ca);
        command
    }
}

/// Makes a call that fails to connect. Returns the error message.
async fn refusal(client: &Client) -> String {
    let error = soon(client.has(SESSION)).await.expect_err("the connection is refused");
    assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn calls_and_streams_work_over_tls() {
    let secure = Secure::start(&[]).await;
    let client = secure.client();
    let mut watch = client.watch(WatchOptions::snapshot());
    while !matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Synced { .. }) {}
    let sessions: Vec<_> = (0..60_000).map(|id| SessionKey::new(0, id)).collect();
    assert_eq!(soon(client.batch_create(&sessions)).await.unwrap().len(), sessions.len());
    let mut received = 0;
    while received < sessions.len() {
        if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap() {
            received += events.len();
        }
    }
    assert!(soon(client.batch_has(&sessions)).await.unwrap().iter().all(|has| *has));
}

#[tokio::test]
async fn a_client_refuses_servers_with_unknown_or_expired_certificates() {
    let secure = Secure::start(&[]).await;
    let theirs = Authority::new(secure.folder.path(), "theirs");
    let builder = Client::builder(&secure.url()).unwrap().tls_ca(fs::read(&theirs.ca).unwrap());
    let says = refusal(&builder.connect_lazy().unwrap()).await;
    assert!(says.contains("UnknownIssuer") || says.contains("BadSignature"), "{says}");

    let expired = secure.ours.issue_expired("expired", &["localhost", "127.0.0.1"]);
    let args = ["--tls-cert", text(&expired.cert), "--tls-key", text(&expired.key)];
    let old = Program::start(&args).await;
    let ca = fs::read(&secure.ours.ca).unwrap();
    let builder = Client::builder(&format!("https://{}", old.addr)).unwrap().tls_ca(ca);
    let says = refusal(&builder.connect_lazy().unwrap()).await;
    assert!(says.contains("expired"), "{says}");
}

#[tokio::test]
async fn a_server_with_a_client_ca_accepts_only_valid_certificates_of_that_ca() {
    let secure = Secure::start_mutual(&[]).await;
    let fds = secure.program.metric("process_open_fds").await;
    let theirs = Authority::new(secure.folder.path(), "theirs");

    let gateway = secure.client_as(&secure.ours.issue("gateway", &["gateway.example"]));
    assert!(soon(gateway.create(SESSION)).await.unwrap());

    let says = refusal(&secure.client()).await;
    assert!(says.contains("CertificateRequired"), "{says}");
    let says = refusal(&secure.client_as(&theirs.issue("foreign", &["gateway.example"]))).await;
    assert!(says.contains("UnknownCA") || says.contains("DecryptError"), "{says}");
    let says = refusal(&secure.client_as(&secure.ours.issue_expired("expired", &["gateway.example"]))).await;
    assert!(says.contains("Expired"), "{says}");

    assert!(soon(gateway.has(SESSION)).await.unwrap());
    drop(gateway);
    secure.program.metric_comes_to("process_open_fds", fds).await;
}

#[tokio::test]
async fn clients_that_mix_up_tls_and_plaintext_learn_what_the_port_speaks() {
    let secure = Secure::start(&[]).await;
    let fds = secure.program.metric("process_open_fds").await;
    let plain = Client::connect_lazy(&format!("http://{}", secure.program.addr)).unwrap();
    for _ in 0..20 {
        let says = refusal(&plain).await;
        assert!(says.contains("this port speaks TLS: connect to https://"), "{says}");
    }
    let error = soon(plain.watch(WatchOptions::from_start(WatchStart::Now)).next()).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    // Clients that do not speak gRPC, and clients that do not wait for an answer.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 1000], b"\x16\x03\x01\xff\xff nonsense", b"\x16"] {
        let mut socket = soon(TcpStream::connect(secure.program.addr)).await.unwrap();
        soon(socket.write_all(bytes)).await.unwrap();
        soon(socket.shutdown()).await.unwrap();
        let _ = soon(socket.read_to_end(&mut Vec::new())).await;
    }
    drop(plain);
    assert!(soon(secure.client().create(SESSION)).await.unwrap());
    secure.program.metric_comes_to("process_open_fds", fds).await;

    let program = Program::start(&[]).await;
    let fds = program.metric("process_open_fds").await;
    let ca = fs::read(&secure.ours.ca).unwrap();
    let tls = Client::builder(&format!("https://{}", program.addr)).unwrap().tls_ca(ca).connect_lazy().unwrap();
    for _ in 0..20 {
        let says = refusal(&tls).await;
        assert!(says.contains("the server does not use TLS on this port: try http://"), "{says}");
    }
    drop(tls);
    program.metric_comes_to("process_open_fds", fds).await;
}

#[tokio::test]
async fn silent_tls_handshakes_time_out() {
    let secure = Secure::start(&["--handshake-timeout", "300ms", "--max-connections", "3"]).await;
    let mut silent = Vec::new();
    // Nothing, an incomplete record header, and a record without its rest.
    for said in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut socket = soon(TcpStream::connect(secure.program.addr)).await.unwrap();
        soon(socket.write_all(said)).await.unwrap();
        silent.push(socket);
    }
    // The silent connections use up the limit until the server closes them.
    assert!(soon(secure.client().create(SESSION)).await.unwrap());
    for mut socket in silent {
        // The server may send an alert first, and end the connection with a FIN or a reset.
        let _ = soon(socket.read_to_end(&mut Vec::new())).await;
    }
}

#[tokio::test]
async fn certificates_are_reloaded_and_connections_continue() {
    let secure = Secure::start(&[]).await;
    let before = secure.client();
    assert!(soon(before.create(SESSION)).await.unwrap());
    let mut watch = before.watch(WatchOptions::from_start(WatchStart::Now));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));

    // An invalid certificate file changes nothing.
    fs::write(&secure.server.cert, "nonsense").unwrap();
    secure.program.logs("cannot use the certificate").await;
    assert!(soon(secure.client().has(SESSION)).await.unwrap());
    // Neither does a certificate that does not match the key.
    let other = Authority::new(secure.folder.path(), "other");
    let issued = other.issue("new", &["localhost", "127.0.0.1"]);
    fs::copy(&issued.cert, &secure.server.cert).unwrap();
    secure.program.logs("must be the private key").await;
    assert!(soon(secure.client().has(SESSION)).await.unwrap());
    // Replace the key by renaming, as programs do to avoid partial reads.
    fs::rename(&issued.key, &secure.server.key).unwrap();
    secure.program.logs("read again").await;

    let says = refusal(&secure.client()).await;
    assert!(says.contains("UnknownIssuer"), "{says}");
    let builder = Client::builder(&secure.url()).unwrap().tls_ca(fs::read(&other.ca).unwrap());
    assert!(soon(builder.connect_lazy().unwrap().has(SESSION)).await.unwrap());
    // Existing connections and streams continue.
    assert!(soon(before.destroy(SESSION)).await.unwrap());
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Events(_)));
}

#[tokio::test]
async fn a_drain_ends_streams_over_tls_with_a_last_heartbeat() {
    let mut secure = Secure::start(&[]).await;
    let mut watch = secure.client().watch(WatchOptions::from_start(WatchStart::Now));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    secure.program.signal("TERM").await;
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Heartbeat));
    let WatchUpdate::Disconnected { error, .. } = soon(watch.next()).await.unwrap() else {
        panic!("the stream ends after the heartbeat")
    };
    assert_eq!(error.reason().as_deref(), Some("SERVER_DRAINING"));
    drop(watch);
    assert_eq!(secure.program.exit_code().await, Some(0));
}

#[tokio::test]
async fn client_commands_speak_tls() {
    let secure = Secure::start_mutual(&[]).await;
    let gateway = secure.ours.issue("gateway", &["gateway.example"]);
    let command = |args: &[&str]| {
        let mut command = secure.command(args);
        command.env("SESSIOND_TLS_CLIENT_CERT", &gateway.cert).env("SESSIOND_TLS_CLIENT_KEY", &gateway.key);
        command
    };
    assert_eq!(run(command(&["create", "5"])).await, printed(0, "5 created\n"));
    assert_eq!(run(command(&["has", "5"])).await, printed(0, "5 exists\n"));
    assert_eq!(run(command(&["health"])).await, printed(0, "SERVING\n"));
    let bench = ["bench", "--duration", "200ms", "--warmup", "0s", "--sessions", "2000", "--observers", "2"];
    let Ended { code, stderr, .. } = run(command(&bench)).await;
    assert_eq!(code, Some(0), "{stderr}");

    assert_fails(&run(secure.command(&["has", "5"])).await, 3, "CertificateRequired");
    assert_fails(&run(command(&["has", "5", "--tls-ca", "/nowhere"])).await, 2, "see --tls-ca");
    assert_fails(&run(command(&["has", "5", "--tls-ca", text(&gateway.key)])).await, 2, "no certificate");
    let plain = format!("http://{}", secure.program.addr);
    assert_fails(&run(command(&["has", "5", "--addr", &plain])).await, 2, "use https://");
}

#[tokio::test]
async fn a_server_does_not_start_with_unusable_tls_files() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, other) = (ours.issue("server", &["localhost"]), ours.issue("other", &["localhost"]));
    let (cert, key, other_key) = (text(&server.cert), text(&server.key), text(&other.key));
    let table: [(&[&str], &str); 7] = [
        (&["--tls-cert", cert], "--tls-key"),
        (&["--tls-key", key], "--tls-cert"),
        (&["--tls-client-ca", cert], "--tls-cert"),
        (&["--tls-cert", "/nowhere", "--tls-key", key], "see --tls-cert"),
        (&["--tls-cert", key, "--tls-key", key], "there is no certificate in it"),
        (&["--tls-cert", cert, "--tls-key", cert], "there is no private key in it"),
        (&["--tls-cert", cert, "--tls-key", other_key], "must be the private key of the certificate"),
    ];
    for (args, says) in table {
        let (code, stderr) = fails(serve(args)).await;
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
}

#[tokio::test]
async fn a_server_on_a_public_address_without_tls_warns() {
    let open = Program::start_on("0.0.0.0:0", &[]).await;
    open.logs("NO TLS").await;
    let folder = tempfile::tempdir().unwrap();
    let server = Authority::new(folder.path(), "ours").issue("server", &["localhost"]);
    let args = ["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)];
    let mut closed = Program::start_on("0.0.0.0:0", &args).await;
    closed.signal("TERM").await;
    assert_eq!(closed.exit_code().await, Some(0));
    closed.logs("drained").await;
    assert!(!closed.log().contains("NO TLS"), "{}", closed.log());
}
