//! Calls on one session through several replicas at once take effect one after the other, each between its begin and its end.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::cmd;
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageError},
};
use tokio::{task::JoinSet, time::sleep};

use super::{
    ROOMY,
    cluster::RedisCluster,
    open,
    server::{RedisServer, is_installed},
};

#[derive(Clone, Copy, Debug)]
enum Action {
    Create,
    Has,
    Destroy,
}

/// A call, with its begin and its end by a clock that all share. One without an answer may have taken effect at any time
/// after its begin, or never.
#[derive(Clone, Debug)]
struct Call {
    action: Action,
    begin: u64,
    end: u64,
    answer: Option<bool>,
}

impl Action {
    /// What it answers where the session exists or not, and whether it exists then.
    fn apply(self, exists: bool) -> (bool, bool) {
        match self {
            Self::Create => (!exists, true),
            Self::Has => (exists, exists),
            Self::Destroy => (exists, false),
        }
    }
}

/// Whether some order of the calls explains all answers: the search of Wing and Gong, which forgets no state twice (Lowe).
fn is_linearizable(history: &[Call]) -> bool {
    assert!(history.len() <= 128, "a bit for each call");
    let answered = (0..history.len()).filter(|n| history[*n].answer.is_some()).fold(0u128, |set, n| set | 1 << n);
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, false)];
    while let Some((done, exists)) = open.pop() {
        if done & answered == answered {
            return true;
        }
        if !seen.insert((done, exists)) {
            continue;
        }
        let left = || history.iter().enumerate().filter(|(n, _)| done >> n & 1 == 0);
        // Nothing that began after another call ended comes before that call.
        let first_end = left().filter(|(_, call)| call.answer.is_some()).map(|(_, call)| call.end).min();
        for (n, call) in left().filter(|(_, call)| first_end.is_none_or(|end| call.begin < end)) {
            let (answer, then) = call.action.apply(exists);
            if call.answer.is_none_or(|given| given == answer) {
                open.push((done | 1 << n, then));
            }
        }
    }
    false
}

/// Several callers at once through all replicas, and what they saw.
async fn history(replicas: &[Arc<dyn SessionStorage>], session: SessionKey, calls: usize) -> Vec<Call> {
    const CALLERS: usize = 6;
    let clock = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (storage, clock) = (Arc::clone(&replicas[caller % replicas.len()]), Arc::clone(&clock));
        callers.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..calls / CALLERS {
                let action = [Action::Create, Action::Has, Action::Destroy][fastrand::usize(..3)];
                let begin = clock.fetch_add(1, Ordering::SeqCst);
                let one = [session];
                let answer = match action {
                    Action::Create => storage.create(&one, None).await,
                    Action::Has => storage.has(&one).await,
                    Action::Destroy => storage.destroy(&one, None).await,
                };
                let end = clock.fetch_add(1, Ordering::SeqCst);
                let answer = match answer {
                    Ok(answers) => Some(answers[0]),
                    Err(StorageError::Unavailable(_)) => None,
                    Err(error) => panic!("{error}"),
                };
                made.push(Call { action, begin, end, answer });
            }
            made
        });
    }
    callers.join_all().await.concat()
}

async fn replicas(url: &str) -> Vec<Arc<dyn SessionStorage>> {
    vec![open(url, ROOMY).await, open(url, ROOMY).await, open(url, ROOMY).await]
}

async fn check(replicas: &[Arc<dyn SessionStorage>], rounds: i64) {
    for round in 0..rounds {
        let history = history(replicas, SessionKey::new(0, round), 120).await;
        assert!(is_linearizable(&history), "{history:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_through_several_replicas_are_linearizable() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        check(&replicas(&server.url("buckets=16")).await, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_connections_that_are_cut_are_linearizable() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let replicas = replicas(&server.url("buckets=16&timeout_ms=300")).await;
    let cutting = async {
        loop {
            sleep(Duration::from_millis(fastrand::u64(1..15))).await;
            let mut kill = redis::cmd("CLIENT");
            let _: i64 = server.ask(kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).unwrap();
        }
    };
    tokio::select! {
        () = check(&replicas, 20) => {}
        () = cutting => {}
    }
    assert_eq!(server.ask::<String>(&cmd("PING")).unwrap(), "PONG");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_cluster_are_linearizable() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        check(&replicas(&cluster.url("partitions=4&buckets=16")).await, 50).await;
    }
}

#[test]
fn histories_that_no_order_explains_are_found() {
    let call = |action, begin, end, answer| Call { action, begin, end, answer };
    let (yes, no) = (Some(true), Some(false));
    // Two creates of one session, both of which say that they did it.
    assert!(!is_linearizable(&[call(Action::Create, 0, 2, yes), call(Action::Create, 1, 3, yes)]));
    assert!(is_linearizable(&[call(Action::Create, 0, 2, yes), call(Action::Create, 1, 3, no)]));
    // Seen, and then not, with nobody who destroys it.
    let stale = [call(Action::Create, 0, 9, yes), call(Action::Has, 1, 2, yes), call(Action::Has, 3, 4, no)];
    assert!(!is_linearizable(&stale));
    // A call without an answer explains it, as long as it began before.
    let lost = |begin| call(Action::Destroy, begin, begin + 1, None);
    assert!(is_linearizable(&[&stale[..], &[lost(0)]].concat()));
    assert!(!is_linearizable(&[&stale[..], &[lost(5)]].concat()));
}
