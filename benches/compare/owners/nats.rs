//! NATS KV: each session is a key in a JetStream bucket, with the owner as its value. An update names the revision that
//! it replaces.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

use super::{
    super::{peers, process::Server, resp::Subscriber},
    Move, Notifications, OWNERS, Peer, SESSIONS,
    pipeline::{Pipeline, Protocol, load},
};

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";

/// The configuration of a bucket as nats.go creates it, with the default history, but in memory.
const BUCKET: &str = concat!(
    r#"{"name":"KV_owners","subjects":["$KV.owners.>"],"max_msgs_per_subject":1,"storage":"memory","#,
    r#""retention":"limits","discard":"new","num_replicas":1,"allow_rollup_hdrs":true,"deny_delete":true,"#,
    r#""allow_direct":true,"max_consumers":-1,"max_msgs":-1,"max_bytes":-1}"#
);

/// The configuration of a consumer that watches the whole bucket from now on, without flow control.
const WATCH: &str = concat!(
    r#"{"stream_name":"KV_owners","config":{"deliver_subject":"watch","deliver_policy":"new","ack_policy":"none","#,
    r#""replay_policy":"instant","max_deliver":1,"filter_subject":"$KV.owners.>","mem_storage":true,"#,
    r#""num_replicas":1}}"#
);

/// The mark that each message to a watcher contains once.
const MESSAGE: &[u8] = b"MSG $KV.owners.";

pub(super) struct Nats {
    server: Server,
    _folder: TempDir,
    revisions: Arc<Revisions>,
}

/// The revision of each session's key. 0 means that the key does not exist yet.
type Revisions = Vec<AtomicU64>;

impl Nats {
    pub(super) async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let server = peers::nats_with_jetstream(folder.path())?;
        api(&server, "STREAM.CREATE.KV_owners", BUCKET, "stream_create_response\",\"config").await;
        let revisions = Arc::new((0..SESSIONS).map(|_| AtomicU64::new(0)).collect());
        let this = Self { server, _folder: folder, revisions };
        load(this.server.address, this.update(false), 0..SESSIONS).await;
        Some(this)
    }

    fn update(&self, moves: bool) -> Call {
        Call::Update { moves, revisions: Arc::clone(&self.revisions) }
    }
}

/// Calls JetStream's API on a connection that also subscribes to `watch`.
async fn api(server: &Server, method: &str, body: &str, success: &str) -> Subscriber {
    let len = body.len();
    let hello = format!("{CONNECT}SUB watch 1\r\nSUB answer 2\r\nPUB $JS.API.{method} answer {len}\r\n{body}\r\n");
    Subscriber::connect(server.address, &hello, success).await
}

impl Peer for Nats {
    type Observer = Notifications;
    type Mover = Pipeline<Call>;

    fn cpu(&self) -> Duration {
        self.server.cpu()
    }

    async fn observer(&self) -> Notifications {
        let created = "consumer_create_response\",\"stream_name";
        let subscriber = api(&self.server, "CONSUMER.CREATE.KV_owners", WATCH, created).await;
        Notifications { subscriber, mark: MESSAGE }
    }

    async fn make_moves(&self, moves: Range<u64>) {
        load(self.server.address, self.update(true), moves).await;
    }

    async fn look_up(&self, lookups: u64) {
        load(self.server.address, Call::Get, 0..lookups).await;
    }

    async fn mover(&self) -> Pipeline<Call> {
        Pipeline::connect(self.server.address, Arc::new(self.update(true)), 0).await
    }
}

pub(super) enum Call {
    /// If `moves`, moves a session to its new owner. Otherwise registers it under the first owner.
    Update {
        moves: bool,
        revisions: Arc<Revisions>,
    },
    Get,
}

impl Protocol for Call {
    fn hello(&self, connection: usize) -> String {
        format!("{CONNECT}SUB _INBOX.{connection}.* 1\r\n")
    }

    fn request(&self, connection: usize, n: u64) -> Vec<u8> {
        let Move { session, from, to } = Move::number(n);
        let (subject, inbox) = (format!("$KV.owners.{session:016}"), format!("_INBOX.{connection}.{session}"));
        match self {
            Self::Get => format!("PUB $JS.API.DIRECT.GET.KV_owners.{subject} {inbox} 0\r\n\r\n"),
            Self::Update { moves, revisions } => {
                let revision = revisions[session as usize].load(Ordering::Relaxed);
                let head = format!("NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {revision}\r\n\r\n");
                let owner = OWNERS[if *moves { to } else { from }];
                let (part, all) = (head.len(), head.len() + owner.len());
                format!("HPUB {subject} {inbox} {part} {all}\r\n{head}{owner}\r\n")
            }
        }
        .into_bytes()
    }

    fn take_answers(&self, read: &mut Vec<u8>) -> usize {
        let (mut taken, mut answers) = (0, 0);
        while let Some((line, body, len)) = message(&read[taken..]) {
            taken += len;
            // Skip the server's greeting and its pings, which need no answer in a short run.
            let Some(body) = body else { continue };
            answers += 1;
            match self {
                Self::Get => assert!(body.contains("Nats-Sequence: ") && body.contains(":7000"), "{body}"),
                Self::Update { revisions, .. } => {
                    assert!(!body.contains("error"), "{body}");
                    let inbox = line.split(' ').nth(1).unwrap();
                    let session: usize = inbox.rsplit('.').next().unwrap().parse().unwrap();
                    let revision = body.split("\"seq\":").nth(1).unwrap();
                    let digits = revision.split(|end: char| !end.is_ascii_digit()).next().unwrap();
                    revisions[session].store(digits.parse().unwrap(), Ordering::Relaxed);
                }
            }
        }
        read.drain(..taken);
        answers
    }
}

/// Returns the first line of `read`, the body that the line announces, and the length of both. `None` if they are
/// incomplete.
fn message(read: &[u8]) -> Option<(&str, Option<&str>, usize)> {
    let end = read.windows(2).position(|bytes| bytes == b"\r\n")?;
    let line = str::from_utf8(&read[..end]).unwrap();
    let begin = end + 2;
    if !line.starts_with("MSG ") && !line.starts_with("HMSG ") {
        assert!(!line.starts_with("-ERR"), "{line}");
        return Some((line, None, begin));
    }
    let len: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
    let body = str::from_utf8(read.get(begin..begin + len)?).unwrap();
    (read.len() >= begin + len + 2).then_some((line, Some(body), begin + len + 2))
}
