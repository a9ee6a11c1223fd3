//! A Redis user that lacks a right.

use std::{collections::BTreeSet, error::Error, fs, path::Path, sync::Arc, time::Duration};

use redis::cmd;
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageError, StorageUrl},
    subject::Start,
};
use tokio::time::timeout;

use super::{
    ROOMY, open,
    replica::{Replica, create, eventually, keys, left_of, run_all},
    server::{RedisServer, ServerKind, on_each_server},
};

const PARAMETERS: &str = "buckets=64&partitions=2";

/// The commands that scripts call, read from the scripts.
fn commands_of_scripts() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/storage/redis/scripts");
    let mut commands = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let code = fs::read_to_string(file.unwrap().path()).unwrap();
        for call in ["call('", "call(\"", "call, '"] {
            for rest in code.split(call).skip(1) {
                let name = rest.split(['\'', '"']).next().unwrap();
                commands.insert(name.to_lowercase());
            }
        }
    }
    assert!(commands.contains("xadd") && commands.contains("hset"), "{commands:?}");
    commands
}

impl RedisServer {
    /// Changes a user by rules of ACL SETUSER.
    fn set_user(&self, user: &str, rules: &[&str]) {
        let () = self.ask(cmd("ACL").arg("SETUSER").arg(user).arg(rules)).unwrap();
    }

    /// The URL of a registry, for a user whose password is `secret`.
    fn url_for(&self, user: &str, parameters: &str) -> String {
        format!("redis://{user}:secret@127.0.0.1:{}/?{parameters}", self.port)
    }
}

const EVERYTHING: [&str; 5] = ["on", ">secret", "~*", "&*", "+@all"];

on_each_server! {
    [#[tokio::test]] a_right_that_is_missing_at_the_start_is_named;
    [#[tokio::test]] a_right_that_is_taken_away_leaves_no_change_half_done;
}

async fn a_right_that_is_missing_at_the_start_is_named(kind: ServerKind) {
    let server = Arc::new(kind.start(&[]));
    run_all(commands_of_scripts().into_iter().map(|command| (command.clone(), is_named(Arc::clone(&server), command))))
        .await;
}

async fn is_named(server: Arc<RedisServer>, command: String) {
    server.set_user(&command, &EVERYTHING);
    server.set_user(&command, &[&format!("-{command}")]);
    let url: StorageUrl = server.url_for(&command, &format!("registry={command}&{PARAMETERS}")).parse().unwrap();
    let outcome = timeout(Duration::from_secs(20), url.open(ROOMY)).await.expect("it does not wait for rights");
    let error = outcome.map(drop).expect_err(&command).to_string();
    assert!(error.to_lowercase().contains(&command) && !error.contains("secret"), "-{command}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// Either a session is as it was before the call or its event is in the log: what an observer was told is what there is.
async fn a_right_that_is_taken_away_leaves_no_change_half_done(kind: ServerKind) {
    let server = Arc::new(kind.start(&[]));
    let mut lost: Vec<Vec<String>> =
        commands_of_scripts().into_iter().map(|command| vec![format!("-{command}")]).collect();
    // All keys but the log, and all but the buckets.
    lost.push(["resetkeys", "~*}:[^l]*", "~*}:l[^o]*"].map(str::to_owned).to_vec());
    lost.push(["resetkeys", "~*}:[^b]*"].map(str::to_owned).to_vec());
    run_all((0..).zip(lost).map(|(number, lost)| (lost.join(" "), loses_a_right(Arc::clone(&server), number, lost))))
        .await;
}

async fn loses_a_right(server: Arc<RedisServer>, number: usize, lost: Vec<String>) {
    let (user, parameters) = (format!("user{number}"), format!("registry=r{number}&{PARAMETERS}"));
    server.set_user(&user, &EVERYTHING);
    let a = open(&server.url_for(&user, &parameters), ROOMY).await;
    let b = Replica::start(&server.url(&parameters)).await;
    let mut held = b.watch(Start::Snapshot).await;
    let one = a.grant_lease(Duration::from_secs(600), "one").await.unwrap();
    let other = a.grant_lease(Duration::from_secs(600), "other").await.unwrap();
    let third = b.storage.grant_lease(Duration::from_secs(600), "third").await.unwrap();
    a.create(&keys(0..20), None).await.unwrap();
    a.create(&keys(20..40), Some(one)).await.unwrap();
    a.create(&keys(40..60), Some(other)).await.unwrap();
    held.comes_to_hold(&keys(0..60)).await;

    server.set_user(&user, &lost.iter().map(String::as_str).collect::<Vec<_>>());
    let calls = [
        ("create", a.create(&keys(60..80), None).await.map(drop)),
        ("create under a lease", a.create(&keys(80..100), Some(one)).await.map(drop)),
        ("create under a lease that is new here", a.create(&keys(100..120), Some(third)).await.map(drop)),
        ("move", a.create(&keys(0..10), Some(one)).await.map(drop)),
        ("destroy", a.destroy(&keys(10..15), None).await.map(drop)),
        ("destroy under a lease", a.destroy(&keys(20..25), Some(one)).await.map(drop)),
        ("grant", a.grant_lease(Duration::from_secs(600), "").await.map(drop)),
        ("keep alive", a.keep_lease_alive(one).await.map(drop)),
        ("revoke", a.revoke_lease(other).await.map(drop)),
        ("has", a.has(&keys(0..10)).await.map(drop)),
    ];
    for (call, outcome) in calls {
        let is_expected = match &outcome {
            Ok(()) => true,
            Err(StorageError::Unavailable(_) | StorageError::Refused(_)) => true,
            Err(_) => false,
        };
        assert!(is_expected, "{lost:?}: {call}: {outcome:?} ({:?})", outcome.as_ref().unwrap_err().source());
    }
    // What is there is what there are events of.
    let now = left_of(keys(0..200), &b).await;
    held.comes_to_hold(&now).await;
    b.watch(Start::Snapshot).await.comes_to_hold(&now).await;

    server.set_user(&user, &EVERYTHING);
    works_again(&a, &b, &mut held, now, [one, other, third]).await;
    assert_eq!(held.resets, [], "{lost:?}");
}

async fn works_again(
    a: &Arc<dyn SessionStorage>,
    b: &Replica,
    held: &mut super::replica::Held,
    mut now: Vec<SessionKey>,
    leases: [sessiond::session::LeaseId; 3],
) {
    create(&**a, &keys(200..220)).await;
    now.extend(keys(200..220));
    held.comes_to_hold(&left_of(now, b).await).await;
    // The leases end with all that is under them.
    for lease in leases {
        let ended = eventually(async || match a.revoke_lease(lease).await {
            Ok(_) | Err(StorageError::UnknownLease(_)) => Some(()),
            Err(_) => None,
        });
        ended.await;
    }
    // The first ten may live on, where they were never moved under a lease.
    let leased = [keys(20..60), keys(80..120)].concat();
    eventually(async || b.storage.has(&leased).await.unwrap().iter().all(|exists| !exists).then_some(())).await;
    let left = left_of(keys(0..220), b).await;
    held.comes_to_hold(&left).await;
    assert_eq!(b.storage.session_count().await.unwrap(), left.len() as u64);
}
