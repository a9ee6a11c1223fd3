//! Entries that are missing from the change log.

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

/// How long the test counts commands.
const MEASURED: Duration = Duration::from_secs(2);

/// Far more commands than two replicas need in that time to check leases and read the log. A loop without a pause sends
/// thousands.
const COMMANDS: u64 = 300;

/// Damage to the newest log entries while a replica cannot read them.
#[derive(Clone, Copy, Debug)]
enum Damage {
    DeletesOneInTheMiddle,
    DeletesTheLast,
    TrimsAllButTheLast,
    TrimsAll,
}

impl Damage {
    /// Applies the damage. `old` is the number of log entries that the replica has read.
    fn apply(self, server: &RedisServer, log: &str, old: usize) {
        let entries: Vec<(String, Value)> = server.ask(cmd("XRANGE").arg(log).arg("-").arg("+")).unwrap();
        let new = &entries[old..];
        assert!(new.len() >= 3, "there is a first, a middle and a last entry");
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

/// Returns how often Redis was asked for log entries or to run a script.
fn commands(server: &RedisServer) -> u64 {
    let count = |command: &str| {
        let stats = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
        let calls = stats.split(',').find_map(|field| field.strip_prefix("calls="));
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    ["xread", "evalsha", "eval", "evalsha_ro", "fcall"].into_iter().map(count).sum()
}

#[tokio::test]
async fn a_missing_log_entry_causes_one_reset_and_no_busy_loop() {
    heals(Damage::DeletesOneInTheMiddle).await;
}

#[tokio::test]
async fn a_missing_last_log_entry_causes_one_reset_and_no_busy_loop() {
    heals(Damage::DeletesTheLast).await;
}

#[tokio::test]
async fn a_log_trimmed_to_its_last_entry_causes_one_reset_and_no_busy_loop() {
    heals(Damage::TrimsAllButTheLast).await;
}

#[tokio::test]
async fn a_log_trimmed_to_nothing_causes_one_reset_and_no_busy_loop() {
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
    held.converges_to(&keys(0..10)).await;
    let cursor = held.observer.cursor().unwrap();
    let logs: Vec<String> = server.ask(cmd("KEYS").arg("*:log")).unwrap();
    let [log] = logs.as_slice() else { panic!("{logs:?}") };
    let old: usize = server.ask(cmd("XLEN").arg(log)).unwrap();

    name.stall(&server);
    for first in [10, 20, 30, 40] {
        create(&*a, &keys(first..first + 10)).await;
    }
    damage.apply(&server, log, old);
    let before = commands(&server);
    name.resume();
    held.resets_once_to(&keys(0..50)).await;
    sleep(MEASURED).await;
    let sent = commands(&server) - before;
    assert!(sent < COMMANDS, "{damage:?}: {sent} commands within {MEASURED:?}");

    // Streams continue with the changes after the gap.
    create(&*a, &keys(50..60)).await;
    a.destroy(&keys(0..5), None).await.unwrap();
    held.converges_to(&keys(5..60)).await;
    assert_eq!(held.resets.len(), 1, "{damage:?}");
    let now = held.observer.cursor().unwrap();
    let late = Replica::start(&server.url(PARAMETERS)).await;
    for replica in [&b, &late] {
        replica.watch(Start::Snapshot).await.converges_to(&keys(5..60)).await;
        replica.resume(cursor.clone(), &keys(0..10)).await.resets_once_to(&keys(5..60)).await;
    }
    create(&*a, &keys(60..70)).await;
    for replica in [&b, &late] {
        let mut on = replica.resume(now.clone(), &keys(5..60)).await;
        on.converges_to(&keys(5..70)).await;
        assert_eq!(on.resets, [], "{damage:?}: a cursor from after the gap resumes");
    }
}
