//! A server exits if an essential task panics.

use std::future::pending;

use super::*;
use crate::storage::{StorageOptions, StorageUrl};

#[tokio::test]
async fn a_server_drains_and_fails_when_an_essential_task_panics() {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ServerConfig {
        listen: any_port.into(),
        admin_listen: any_port.into(),
        tls: None,
        access_file: None,
        rate_limit: None,
        storage: StorageUrl::Memory.into(),
        storage_wait: StorageWait::AtMost(Duration::ZERO),
        workers: NonZeroUsize::MIN,
        subject: SubjectOptions::default(),
        max_sessions: 1000,
        max_leases: 1000,
        outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
        max_connections: 10,
        connections: ConnectionOptions::default(),
        calls: ServiceOptions::default(),
        tracer: None,
        drain_timeout: Duration::from_secs(10),
    };
    let server = Server::bind(config).await.unwrap();
    let vitals = server.vitals.clone();
    let serving = timeout(Duration::from_secs(30), server.run(pending()));
    let panics = tokio::spawn(vitals.watch("a task", async { panic!("on purpose") }));
    let (ended, panicked) = tokio::join!(serving, panics);
    assert!(matches!(ended, Ok(Err(ServerError::FailedTask("a task")))));
    assert!(panicked.unwrap_err().is_panic());
}
