//! Entries that are missing from the log.

use std::{sync::Arc, time::Duration};

use redis::{Value, cmd};
use sessiond::{storage::SessionStorage, subject::Start};
use tokio::time::sleep;

use super::{
    ROOMY,
    name::Name,
    open,
    replica::{Replica, create, keys},
    server::{RedisServer, is_installed},
};

const PARAMETERS: &str = "buckets=64";

/// For so long commands are counted.
const WHILE: Duration = Duration::from_secs(2);

/// Far more than two replicas need in that time to look after leases and read the log; a loop without a pause sends thousands.
const COMMANDS: u64 = 300;

/// What somebody does to the newest entries of the log while a replica cannot read it.
#[derive(Clone, Copy, Debug)]
enum Damage {
    DeletesOneInTheMiddle,
    DeletesTheLast,
    TrimsAllButTheLast,
    TrimsAll,
}

impl Damage {
    /// `old` is how many entries of the log the replica has read.
    fn is_done(self, server: &RedisServer, log: &str, old: usize) {
        let entries: Vec<(String, Value)> = server.ask(cmd("XRANGE").arg(log).arg("-").arg("+")).unwrap();
        let new = &entries[old..];
        assert!(new.len() >= 3, "a first, a middle and a last one");
        let delete = |index: usize| server.ask::<u32>(cmd("XDEL").arg(log).arg(&new[index].0)).unwrap();
        let trim = |left: u32| server.ask::<u32>(cmd("XTRIM").arg(log).arg("MAXLEN").arg(left)).unwrap();
        let gone = match self {
            Self::DeletesOneInTheMiddle => delete(new.len() / 2),
            Self::DeletesTheLast => delete(new.len() - 1),
            Self::TrimsAllButTheLast => trim(1),
            Self::TrimsAll => trim(0),
        };
        assert!(gone > 0);
    }
}

/// How often Redis was asked for changes, or to run a script.
fn commands(server: &RedisServer) -> u64 {
    let count = |command: &str| {
        let stats = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
        let calls = stats.split(',').find_map(|field| field.strip_prefix("calls="));
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    ["xread", "evalsha", "eval", "evalsha_ro", "fcall"].into_iter().map(count).sum()
}

#[tokio::test]
async fn a_log_that_lacks_an_entry_leads_to_one_reset_and_no_loop() {
    heals(Damage::DeletesOneInTheMiddle).await;
}

#[tokio::test]
async fn a_log_that_lacks_its_last_entry_leads_to_one_reset_and_no_loop() {
    heals(Damage::DeletesTheLast).await;
}

#[tokio::test]
async fn a_log_trimmed_to_its_last_entry_leads_to_one_reset_and_no_loop() {
    heals(Damage::TrimsAllButTheLast).await;
}

#[tokio::test]
async fn a_log_trimmed_to_nothing_leads_to_one_reset_and_no_loop() {
    heals(Damage::TrimsAll).await;
}

async fn heals(damage: Damage) {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let name = Name::of(&server).await;
    let a: Arc<dyn SessionStorage> = open(&server.url(PARAMETERS), ROOMY).await;
    let b = Replica::start(&name.url(PARAMETERS)).await;
    create(&*a, &keys(0..10)).await;
    let mut held = b.watch(Start::Snapshot).await;
    held.comes_to_hold(&keys(0..10)).await;
    let cursor = held.observer.cursor().unwrap();
    let logs: Vec<String> = server.ask(cmd("KEYS").arg("*:log")).unwrap();
    let [log] = logs.as_slice() else { panic!("{logs:?}") };
    let old: usize = server.ask(cmd("XLEN").arg(log)).unwrap();

    name.stall(&server);
    for first in [10, 20, 30, 40] {
        create(&*a, &keys(first..first + 10)).await;
    }
    damage.is_done(&server, log, old);
    let before = commands(&server);
    name.resume();
    held.starts_again_with(&keys(0..50)).await;
    sleep(WHILE).await;
    let sent = commands(&server) - before;
    assert!(sent < COMMANDS, "{damage:?}: {sent} commands within {WHILE:?}");

    // All goes on, with the changes after the gap.
    create(&*a, &keys(50..60)).await;
    a.destroy(&keys(0..5), None).await.unwrap();
    held.comes_to_hold(&keys(5..60)).await;
    assert_eq!(held.resets.len(), 1, "{damage:?}");
    let now = held.observer.cursor().unwrap();
    let late = Replica::start(&server.url(PARAMETERS)).await;
    for replica in [&b, &late] {
        replica.watch(Start::Snapshot).await.comes_to_hold(&keys(5..60)).await;
        replica.resume(cursor.clone(), &keys(0..10)).await.starts_again_with(&keys(5..60)).await;
    }
    create(&*a, &keys(60..70)).await;
    for replica in [&b, &late] {
        let mut on = replica.resume(now.clone(), &keys(5..60)).await;
        on.comes_to_hold(&keys(5..70)).await;
        assert_eq!(on.resets, [], "{damage:?}: a cursor from after the gap goes on");
    }
}
