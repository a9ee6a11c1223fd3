//! sessiond: each session is under its gateway's lease. A create with `only_from_lease_id` moves it.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use sessiond::proto::{
    CreateSessionRequest, GrantLeaseRequest, GrantLeaseResponse, LookupSessionRequest, SessionEventType,
    SubscribeRequest, subscribe_response::Body,
};
use tempfile::TempDir;

use super::{
    super::{
        observer::{Observer, from_now},
        peers,
        process::Server,
        wire::{Wire, framed, load},
    },
    Calls, LEASE, Move, OWNERS, Peer, SESSIONS, SHAPE,
};

const GRANT: &str = "/sessiond.v1.LeaseService/GrantLease";
const CREATE: &str = "/sessiond.v1.SessionService/CreateSession";
const LOOKUP: &str = "/sessiond.v1.SessionService/LookupSession";

pub(super) struct Sessiond {
    server: Server,
    /// Its Redis, if that is its storage.
    redis: Option<Server>,
    _folder: Option<TempDir>,
    leases: [u64; 2],
}

impl Sessiond {
    pub(super) async fn in_memory() -> Self {
        Self::start("memory:", None, None).await
    }

    pub(super) async fn in_file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start(&format!("file:{}", folder.path().join("registry").display()), None, Some(folder)).await
    }

    pub(super) async fn over_redis() -> Option<Self> {
        let redis = peers::redis()?;
        Some(Self::start(&format!("redis://{}/", redis.address), Some(redis), None).await)
    }

    async fn start(storage: &str, redis: Option<Server>, folder: Option<TempDir>) -> Self {
        let server = peers::sessiond(&["--storage", storage]);
        let mut wire = Wire::connect(server.address, GRANT).await;
        let mut leases = [0; 2];
        for (lease, owner) in leases.iter_mut().zip(OWNERS) {
            let ttl = prost_types::Duration::try_from(LEASE).unwrap();
            let request = GrantLeaseRequest { ttl: Some(ttl), owner: owner.to_owned() };
            *lease = wire.ask::<GrantLeaseResponse>(&request).await.lease_id;
        }
        let create = move |n| {
            framed(&CreateSessionRequest { session_id: Some(n as i64), lease_id: leases[0], ..Default::default() })
        };
        load(server.address, CREATE, SESSIONS, SHAPE, create).await;
        Self { server, redis, _folder: folder, leases }
    }

    fn create(&self) -> impl Fn(u64) -> Bytes + Send + Sync + use<> {
        let leases = self.leases;
        move |n| {
            let Move { session, from, to } = Move::number(n);
            framed(&CreateSessionRequest {
                session_id: Some(session as i64),
                lease_id: leases[to],
                only_from_lease_id: Some(leases[from]),
                ..Default::default()
            })
        }
    }
}

impl Peer for Sessiond {
    type Observer = Observer;
    type Mover = Calls;

    fn cpu(&self) -> Duration {
        self.server.cpu() + self.redis.as_ref().map_or(Duration::ZERO, Server::cpu)
    }

    async fn observer(&self) -> Observer {
        Observer::connect(self.server.address, &SubscribeRequest { placements: true, ..from_now() }).await
    }

    async fn make_moves(&self, moves: Range<u64>) {
        let create = self.create();
        let body = move |n| create(moves.start + n);
        load(self.server.address, CREATE, moves.end - moves.start, SHAPE, body).await;
    }

    async fn look_up(&self, lookups: u64) {
        let body = |n| framed(&LookupSessionRequest { session_id: Some((n % SESSIONS) as i64), auth_key_id: 0 });
        load(self.server.address, LOOKUP, lookups, SHAPE, body).await;
    }

    async fn mover(&self) -> Calls {
        Calls { wire: Wire::connect(self.server.address, CREATE).await, body: Box::new(self.create()) }
    }
}

impl super::Observer for Observer {
    async fn expect(&mut self, moves: u64) {
        let mut received = 0;
        while received < moves {
            match self.next().await {
                Body::Events(events) => {
                    let moved = events.events.iter().filter(|event| event.r#type() == SessionEventType::Moved);
                    received += moved.count() as u64;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, moves);
    }
}
