//! Starts the servers that are compared.

use std::{
    env,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
};

use sessiond::proto::{GrantLeaseRequest, lease_service_client::LeaseServiceClient};

pub(crate) use super::used::server::sessiond;
use super::{
    floor, generated,
    process::{Server, free_port},
};

/// Grants `count` leases of one hour at a sessiond.
pub(crate) async fn leases(address: SocketAddr, count: usize) -> Vec<u64> {
    let mut client = LeaseServiceClient::connect(format!("http://{address}")).await.unwrap();
    let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let mut leases = Vec::new();
    for _ in 0..count {
        let request = GrantLeaseRequest { ttl, owner: "10.0.0.1:443".to_owned() };
        leases.push(client.grant_lease(request).await.unwrap().into_inner().lease_id);
    }
    leases
}

/// Starts Redis without persistence, and without a limit on the output buffer of a slow subscriber.
pub(crate) fn redis() -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--client-output-buffer-limit", "pubsub 0 0 0", "--maxclients", "20000"]);
    Server::start(&mut command, port)
}

/// Starts a Redis that writes every change to disk before it answers.
pub(crate) fn redis_on_disk(folder: &Path) -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    Server::start(command.args(["--appendonly", "yes", "--appendfsync", "always"]), port)
}

/// Starts NATS.
pub(crate) fn nats() -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("nats-server");
    Server::start(command.args(["-a", "127.0.0.1", "-p", &port.to_string()]), port)
}

/// Starts NATS with JetStream, with its data in `folder`.
pub(crate) fn nats_with_jetstream(folder: &Path) -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("nats-server");
    Server::start(command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(folder), port)
}

/// Starts etcd with its data in `folder`.
pub(crate) fn etcd(folder: &Path) -> Option<Server> {
    let (port, peer_port) = (free_port(), free_port());
    let (url, peer_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(folder).args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("default={peer_url}")]);
    Server::start(&mut command, port)
}

/// Starts tonic as in its guide: on the multi-threaded runtime, with a no-op service.
pub(crate) fn stock_tonic() -> Server {
    own("stock")
}

/// Starts tonic's generated service behind tonic's server and router, with a current-thread runtime per core. Looks sessions
/// up in a memory storage.
pub(crate) fn routed_tonic() -> Server {
    own("routed")
}

/// Starts tonic's generated service on hyper alone, with a current-thread runtime per core. Looks sessions up in a memory
/// storage.
pub(crate) fn direct_tonic() -> Server {
    own("direct")
}

/// Starts a server on the h2 crate alone, with a current-thread runtime per core. Shows what HTTP/2 costs in Rust.
pub(crate) fn bare_h2() -> Server {
    own("bare")
}

/// Starts a server that reads calls and writes answers without parsing them. Shows what sockets cost.
pub(crate) fn bare_calls() -> Server {
    own("calls")
}

/// Starts a fan-out server that only writes to sockets.
pub(crate) fn bare_tcp() -> Server {
    own("tcp")
}

fn own(peer: &str) -> Server {
    let port = free_port();
    let mut command = Command::new(env::current_exe().unwrap());
    Server::start(command.args(["serve", peer, &port.to_string()]), port).unwrap()
}

/// Runs one of the peers that are written here, in this process.
pub(crate) fn serve(peer: &str, port: u16) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    listener.set_nonblocking(true).unwrap();
    match peer {
        "stock" => generated::serve_stock(listener),
        "routed" => generated::serve_routed(listener),
        "direct" => generated::serve_direct(listener),
        "bare" => floor::serve_h2(listener),
        "calls" => floor::serve_blindly(listener),
        _ => floor::serve_fan_out(listener),
    }
}
