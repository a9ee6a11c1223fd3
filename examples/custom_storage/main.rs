//! Serves a custom storage: `cargo run --example custom_storage -- registry.redb`.
//!
//! The module `storage` implements [`SessionStorage`] over redb, an embedded database. The server does the rest: gRPC,
//! streams, health, metrics and the drain.

mod storage;

use std::{env, error::Error, sync::Arc};

use sessiond::{
    server::{Server, ServerConfig},
    storage::{SessionStorage, StorageOptions},
};

use self::storage::RedbStorage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("name the file of the registry")?;
    let storage: Arc<dyn SessionStorage> = Arc::new(RedbStorage::open(path, StorageOptions::default()).await?);
    let server = Server::bind(ServerConfig::new(storage)).await?;
    server.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(())
}
