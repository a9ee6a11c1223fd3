//! A server exits if an essential task panics.

use std::future::pending;

use super::*;
use crate::storage::StorageUrl;

#[tokio::test]
async fn a_server_drains_and_fails_when_an_essential_task_panics() {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(StorageUrl::Memory);
    config.listen = any_port.into();
    config.admin_listen = any_port.into();
    let server = Server::bind(config).await.unwrap();
    let vitals = server.vitals.clone();
    let serving = timeout(Duration::from_secs(30), server.run(pending()));
    let panics = tokio::spawn(vitals.watch("a task", async { panic!("on purpose") }));
    let (ended, panicked) = tokio::join!(serving, panics);
    assert!(matches!(ended, Ok(Err(ServerError::FailedTask("a task")))));
    assert!(panicked.unwrap_err().is_panic());
}
