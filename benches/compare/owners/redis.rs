//! Redis: each session is a hash with the owner in a field. Moves are published on a channel.

use std::{ops::Range, sync::Arc, time::Duration};

use redis::{Client, cmd};

use super::{
    super::{peers, process::Server, resp::Subscriber},
    Move, Notifications, OWNERS, Peer, SESSIONS,
    pipeline::{Pipeline, Protocol, load},
};

const SCRIPT: &str = "
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'owner', ARGV[2])
redis.call('PUBLISH', 'moves', KEYS[1] .. ' ' .. ARGV[2])
return 1
";

/// The mark that each message to a subscriber contains once.
const MESSAGE: &[u8] = b"$7\r\nmessage\r\n";

pub(super) struct Redis {
    server: Server,
    moves: Moves,
}

#[derive(Clone)]
pub(super) enum Moves {
    /// Two commands in one write.
    Plain,
    /// The script with this hash.
    Script(String),
}

impl Redis {
    pub(super) fn plain() -> Option<Self> {
        Some(Self { server: peers::redis()?, moves: Moves::Plain })
    }

    pub(super) async fn with_script() -> Option<Self> {
        let server = peers::redis()?;
        let client = Client::open(format!("redis://{}/", server.address)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let hash = cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut connection).await.unwrap();
        Some(Self { server, moves: Moves::Script(hash) })
    }
}

impl Peer for Redis {
    type Observer = Notifications;
    type Mover = Pipeline<Call>;

    fn cpu(&self) -> Duration {
        self.server.cpu()
    }

    async fn observer(&self) -> Notifications {
        load(self.server.address, Call::Register, 0..SESSIONS).await;
        let subscriber = Subscriber::connect(self.server.address, "SUBSCRIBE moves\r\n", "subscribe").await;
        Notifications { subscriber, mark: MESSAGE }
    }

    async fn make_moves(&self, moves: Range<u64>) {
        load(self.server.address, Call::Move(self.moves.clone()), moves).await;
    }

    async fn look_up(&self, lookups: u64) {
        load(self.server.address, Call::LookUp, 0..lookups).await;
    }

    async fn mover(&self) -> Pipeline<Call> {
        Pipeline::connect(self.server.address, Arc::new(Call::Move(self.moves.clone())), 0).await
    }
}

pub(super) enum Call {
    Register,
    Move(Moves),
    LookUp,
}

impl Call {
    /// Returns how an answer starts, and its length.
    fn answer(&self) -> (&'static [u8], usize) {
        match self {
            // HSET added no field, and PUBLISH reached one subscriber.
            Self::Move(Moves::Plain) => (b":0\r\n:1\r\n", 8),
            Self::Register | Self::Move(Moves::Script(_)) => (b":1\r\n", 4),
            Self::LookUp => (b"$13\r\n10.0.0.", "$13\r\n10.0.0.1:7000\r\n".len()),
        }
    }
}

impl Protocol for Call {
    fn hello(&self, _: usize) -> String {
        String::new()
    }

    fn request(&self, _: usize, n: u64) -> Vec<u8> {
        let Move { session, from, to } = Move::number(n);
        let (key, from, to) = (format!("session:{session:016}"), OWNERS[from], OWNERS[to]);
        match self {
            Self::Register => command(&["HSET", &key, "owner", from]),
            Self::LookUp => command(&["HGET", &key, "owner"]),
            Self::Move(Moves::Script(hash)) => command(&["EVALSHA", hash, "1", &key, from, to]),
            Self::Move(Moves::Plain) => {
                let set = command(&["HSET", &key, "owner", to]);
                [set, command(&["PUBLISH", "moves", &format!("{key} {to}")])].concat()
            }
        }
    }

    fn take_answers(&self, read: &mut Vec<u8>) -> usize {
        let (begin, len) = self.answer();
        let answers = read.len() / len;
        for answer in read.drain(..answers * len).as_slice().chunks(len) {
            assert!(answer.starts_with(begin), "{}", String::from_utf8_lossy(answer));
        }
        answers
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    command.into_bytes()
}
