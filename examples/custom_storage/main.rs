//! Serves a storage of one's own: `cargo run --example custom_storage -- registry.redb`.
//!
//! `storage` implements [`SessionStorage`] over redb, an embedded database. The server does the rest: streams, leases
//! that expire, health, metrics and the drain.

mod storage;

use std::{env, error::Error, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use sessiond::{
    server::{ConnectionOptions, Server, ServerConfig, StorageWait},
    service::ServiceOptions,
    storage::{SessionStorage, StorageOptions},
    subject::SubjectOptions,
};

use self::storage::RedbStorage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("name the file of the registry")?;
    let subject = SubjectOptions::default();
    let options = StorageOptions {
        retain_events: subject.retain_events,
        max_sessions: 10_000_000,
        max_leases: 100_000,
        outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
    };
    let storage: Arc<dyn SessionStorage> = Arc::new(RedbStorage::open(path, options).await?);
    let server = Server::bind(ServerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 50051)).into(),
        admin_listen: SocketAddr::from(([127, 0, 0, 1], 9090)).into(),
        tls: None,
        access_file: None,
        rate_limit: None,
        storage: storage.into(),
        storage_wait: StorageWait::AtMost(Duration::ZERO),
        workers: NonZeroUsize::MIN,
        subject,
        max_sessions: options.max_sessions,
        max_leases: options.max_leases,
        outage_grace: options.outage_grace,
        max_connections: 10_000,
        connections: ConnectionOptions::default(),
        calls: ServiceOptions::default(),
        tracer: None,
        drain_timeout: Duration::from_secs(10),
    })
    .await?;
    server.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(())
}
