//! A panic of the writer thread is noticed.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    open,
    sim::{Fault, Sim},
};
use crate::{session::SessionKey, storage::SessionStorage};

#[tokio::test]
async fn panic_of_the_writer_is_noticed() {
    let disk = Sim::default();
    let storage = open(&disk, 1000).await;
    storage.create(&[SessionKey::new(0, 1)], None).await.unwrap();
    assert_eq!(storage.failed_task(), None);
    disk.set_fault(Some(Fault::Panics));
    let noticed = async {
        while storage.failed_task().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let second = [SessionKey::new(0, 2)];
    tokio::select! {
        created = storage.create(&second, None) => panic!("there is no writer: {created:?}"),
        noticed = timeout(Duration::from_secs(30), noticed) => noticed.unwrap(),
    }
    assert_eq!(storage.failed_task(), Some("file writer"));
}
