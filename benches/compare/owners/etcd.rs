//! etcd: each session is a key with the owner as its value, under the owner's lease. A transaction moves it.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    super::{
        observer::Stream,
        peers,
        process::Server,
        wire::{Wire, framed, load},
    },
    Calls, LEASE, Move, OWNERS, Observer, Peer, SESSIONS, SHAPE,
    etcd_messages::{
        Compare, LeaseGrantRequest, LeaseGrantResponse, PutRequest, RangeRequest, RequestOp, TxnRequest,
        WatchCreateRequest, WatchRequest, WatchResponse,
    },
};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const TXN: &str = "/etcdserverpb.KV/Txn";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

pub(super) struct Etcd {
    server: Server,
    _folder: TempDir,
    leases: [i64; 2],
    /// Whether lookups are serializable, so that a member that is behind may answer them.
    serializable: bool,
}

impl Etcd {
    pub(super) async fn start(serializable: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let server = peers::etcd(folder.path())?;
        let mut wire = Wire::connect(server.address, GRANT).await;
        let mut leases = [0; 2];
        for lease in &mut leases {
            let request = LeaseGrantRequest { ttl: LEASE.as_secs() as i64 };
            *lease = wire.ask::<LeaseGrantResponse>(&request).await.id;
        }
        // A transaction, because in 3.4 a plain Put looks at every key of its lease (checkLeasePuts in apply_auth.go).
        let create = move |session| {
            let put = RequestOp { put: Some(put(leases, session, 0)), range: None };
            framed(&TxnRequest { compare: vec![], success: vec![put], failure: vec![] })
        };
        load(server.address, TXN, SESSIONS, SHAPE, create).await;
        Some(Self { server, _folder: folder, leases, serializable })
    }

    /// Returns transactions that move a session if it has the expected owner, and otherwise read its owner.
    fn transaction(&self) -> impl Fn(u64) -> Bytes + Send + Sync + use<> {
        let leases = self.leases;
        move |n| {
            let Move { session, from, to } = Move::number(n);
            let read = RangeRequest { key: key(session), serializable: false };
            framed(&TxnRequest {
                compare: vec![Compare { target: Compare::VALUE, key: key(session), value: OWNERS[from].into() }],
                success: vec![RequestOp { put: Some(put(leases, session, to)), range: None }],
                failure: vec![RequestOp { put: None, range: Some(read) }],
            })
        }
    }
}

fn key(session: u64) -> Vec<u8> {
    format!("session/{session:016}").into_bytes()
}

fn put(leases: [i64; 2], session: u64, owner: usize) -> PutRequest {
    PutRequest { key: key(session), value: OWNERS[owner].into(), lease: leases[owner] }
}

impl Peer for Etcd {
    type Observer = Stream;
    type Mover = Calls;

    fn cpu(&self) -> Duration {
        self.server.cpu()
    }

    async fn observer(&self) -> Stream {
        let create = WatchCreateRequest { key: b"session/".into(), range_end: b"session0".into() };
        let mut stream = Stream::open(self.server.address, WATCH, &WatchRequest { create: Some(create) }).await;
        assert!(stream.next::<WatchResponse>().await.created);
        stream
    }

    async fn make_moves(&self, moves: Range<u64>) {
        let transaction = self.transaction();
        let body = move |n| transaction(moves.start + n);
        load(self.server.address, TXN, moves.end - moves.start, SHAPE, body).await;
    }

    async fn look_up(&self, lookups: u64) {
        let serializable = self.serializable;
        let body = move |n| framed(&RangeRequest { key: key(n % SESSIONS), serializable });
        load(self.server.address, RANGE, lookups, SHAPE, body).await;
    }

    async fn mover(&self) -> Calls {
        Calls { wire: Wire::connect(self.server.address, TXN).await, body: Box::new(self.transaction()) }
    }
}

impl Observer for Stream {
    async fn expect(&mut self, moves: u64) {
        let mut received = 0;
        while received < moves {
            received += self.next::<WatchResponse>().await.events.len() as u64;
        }
        assert_eq!(received, moves);
    }
}
