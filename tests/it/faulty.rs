//! What callers receive when the storage fails: the rows of the contract's error table that no input can cause.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sessiond::{
    proto::{CreateSessionRequest, DestroySessionRequest, GrantLeaseRequest, HasSessionRequest, SubscribeRequest},
    server::{ServerConfig, ServerError, StorageWait},
    session::{LeaseId, SessionKey},
    storage::{
        RefusalCause, SessionStorage, StorageError, Writability, WriteRefusal,
        memory::{MemoryOptions, MemoryStorage},
    },
    subject::{SessionSubject, SubjectOptions},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    errors::refusal,
    fake::{duration, soon},
    observed::{Observed, created_ids},
    program::get,
    server::{Running, config},
    sessions::{create, has},
    twisted::{Twist, Twisted},
};

pub(crate) const HEALTHY: u8 = 0;
pub(crate) const UNREACHABLE: u8 = 1;
pub(crate) const BROKEN: u8 = 2;
pub(crate) const REFUSES: u8 = 3;
const PANICS: u8 = 4;
const EXPIRY_PANICS: u8 = 5;
/// Each lease is revoked just before its owner is looked up.
pub(crate) const ENDS_LEASES: u8 = 6;
/// A task of the storage has panicked.
const LOSES_A_TASK: u8 = 7;

/// Makes a memory storage fail on demand.
#[derive(Debug)]
pub(crate) struct Faulty {
    state: AtomicU8,
    /// How many calls to keep a lease alive reached the storage.
    kept: AtomicU64,
    /// How many calls of `log` reached the storage.
    log_calls: AtomicU64,
}

impl Faulty {
    pub(crate) fn set_state(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    fn refusal() -> WriteRefusal {
        WriteRefusal::new(RefusalCause::TooFewReplicas, "secret detail")
    }
}

#[async_trait]
impl Twist for Faulty {
    fn before(&self, call: &str) -> Result<(), StorageError> {
        match call {
            "keep_lease_alive" => drop(self.kept.fetch_add(1, Ordering::SeqCst)),
            "log" => drop(self.log_calls.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
        let cause = || Box::new(std::io::Error::other("secret cause"));
        match self.state() {
            UNREACHABLE => Err(StorageError::Unavailable(cause())),
            BROKEN => Err(StorageError::Broken(cause())),
            REFUSES if matches!(call, "create_with" | "destroy_with" | "grant_lease") => {
                Err(StorageError::Refused(Self::refusal()))
            }
            PANICS => panic!("a fault in the storage"),
            EXPIRY_PANICS if call == "expire_leases" => panic!("a fault in the storage"),
            _ => Ok(()),
        }
    }

    fn writability(&self, truth: &dyn SessionStorage) -> Writability {
        if self.state() == REFUSES { Writability::Refused(Self::refusal()) } else { truth.writability() }
    }

    fn failed_task(&self) -> Option<&'static str> {
        (self.state() == LOSES_A_TASK).then_some("a task of the storage")
    }

    async fn lease_owner(&self, truth: &dyn SessionStorage, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        if self.state() == ENDS_LEASES {
            truth.revoke_lease(lease).await?;
        }
        truth.lease_owner(lease).await
    }
}

fn faulty() -> Arc<Twisted<Faulty>> {
    let (kept, log_calls) = (AtomicU64::new(0), AtomicU64::new(0));
    let twist = Faulty { state: AtomicU8::new(HEALTHY), kept, log_calls };
    Twisted::new(Arc::new(MemoryStorage::new(MemoryOptions::default())), twist)
}

/// Starts a subject over a healthy storage. Returns both.
async fn over_faulty() -> (SessionSubject, Arc<Twisted<Faulty>>) {
    let faulty = faulty();
    let storage: Arc<dyn SessionStorage> = faulty.clone();
    (SessionSubject::start(storage, SubjectOptions::default(), ()).await.unwrap(), faulty)
}

fn config_over(faulty: &Arc<Twisted<Faulty>>) -> ServerConfig {
    let storage: Arc<dyn SessionStorage> = faulty.clone();
    config().storage(storage)
}

/// Starts a server over a faulty storage. Returns both.
pub(crate) async fn served() -> (Arc<Twisted<Faulty>>, Running) {
    let faulty = faulty();
    let server = Running::with(config_over(&faulty)).await;
    (faulty, server)
}

#[tokio::test]
async fn a_storage_failure_is_reported_without_its_cause() {
    let (faulty, server) = served().await;
    let (mut client, mut leases) = (server.sessions(), server.leases());
    let mut observed = Observed::now(&client).await;

    let session_id = Some(1);
    let ttl = Some(duration(Duration::from_secs(9)));
    for (state, refusal) in [
        (UNREACHABLE, refusal(Code::Unavailable, "STORAGE_UNAVAILABLE", None, "try again")),
        (BROKEN, refusal(Code::Internal, "INTERNAL", None, "log")),
    ] {
        faulty.set_state(state);
        refusal.of(client.has_session(HasSessionRequest { session_id, ..Default::default() })).await;
        refusal.of(client.create_session(CreateSessionRequest { session_id, ..Default::default() })).await;
        refusal.of(client.destroy_session(DestroySessionRequest { session_id, ..Default::default() })).await;
        refusal.of(client.subscribe(SubscribeRequest::default())).await;
        refusal.of(leases.grant_lease(GrantLeaseRequest { ttl, owner: String::new() })).await;
    }
    faulty.set_state(HEALTHY);
    assert!(create(&client, 0, 1).await);
    assert_eq!(created_ids(&observed.events(1).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_registry_is_ready_again_when_its_storage_recovers() {
    let (subject, faulty) = over_faulty().await;
    // The task that follows the storage has not run yet.
    for (state, is_following) in [(UNREACHABLE, false), (HEALTHY, true)] {
        faulty.set_state(state);
        let reached = async {
            while subject.stats().is_following != is_following {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    }
}

#[tokio::test]
async fn a_storage_that_refuses_changes_stays_readable_and_errors_name_the_cause() {
    let (faulty, server) = served().await;
    let (mut client, mut leases, subject) = (server.sessions(), server.leases(), &server.subject);
    let mut observed = Observed::now(&client).await;
    assert!(create(&client, 0, 1).await);
    assert_eq!(subject.writability(), Writability::Writable);

    faulty.set_state(REFUSES);
    let refusal = refusal(
        Code::Unavailable,
        "STORAGE_REFUSES_CHANGES",
        None,
        "because the store has too few replicas: try again later; to fix it, bring",
    );
    let ttl = Some(duration(Duration::from_secs(9)));
    refusal.of(client.create_session(CreateSessionRequest { session_id: Some(2), ..Default::default() })).await;
    refusal.of(client.destroy_session(DestroySessionRequest { session_id: Some(1), ..Default::default() })).await;
    refusal.of(leases.grant_lease(GrantLeaseRequest { ttl, owner: String::new() })).await;
    assert!(has(&client, 0, 1).await && !has(&client, 0, 2).await);
    assert_eq!(Observed::snapshot(&client).await.synced().await.len(), 1);
    assert_eq!(subject.writability(), Writability::Refused(Faulty::refusal()));
    assert!(subject.is_following());

    faulty.set_state(HEALTHY);
    assert!(create(&client, 0, 2).await);
    assert_eq!(created_ids(&observed.events(2).await), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_whose_storage_is_unreachable_is_not_writable() {
    let (subject, faulty) = over_faulty().await;
    faulty.set_state(UNREACHABLE);
    // The task that follows the storage has not run yet.
    while subject.is_following() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(subject.writability().refusal().unwrap().cause, RefusalCause::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_that_repeats_within_a_tenth_of_the_ttl_is_answered_from_memory() {
    let (subject, faulty) = over_faulty().await;
    let ttl = Duration::from_secs(20);
    let lease = subject.grant_lease(ttl, "").await.unwrap();
    for rounds in 1..=3 {
        for _ in 0..100 {
            assert_eq!(subject.keep_lease_alive(lease).await.unwrap(), ttl);
        }
        assert_eq!(faulty.kept.load(Ordering::SeqCst), rounds);
        tokio::time::sleep(ttl / 10).await;
    }
    assert_eq!(subject.keep_lease_alive(lease).await.unwrap(), ttl);
    subject.revoke_lease(lease).await.unwrap();
    assert!(matches!(subject.keep_lease_alive(lease).await, Err(StorageError::UnknownLease(_))));
}

/// Waits until the subject reports that it no longer follows the storage.
async fn wait_until_not_following(subject: &SessionSubject) {
    soon(async {
        while subject.is_following() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_panic_in_the_publishing_task_ends_readiness() {
    let (subject, faulty) = over_faulty().await;
    subject.create(&[SessionKey::new(0, 1)], None).await.unwrap();
    soon(async {
        while subject.stats().changes.created == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    faulty.set_state(PANICS);
    // This change makes the task read the storage again.
    faulty.truth.create(&[SessionKey::new(0, 2)], None).await.unwrap();
    wait_until_not_following(&subject).await;
    assert!(subject.writability().refusal().is_some());
}

#[tokio::test]
async fn a_panic_in_the_expiry_task_ends_readiness() {
    let (subject, faulty) = over_faulty().await;
    // Neither task has run yet.
    faulty.set_state(EXPIRY_PANICS);
    wait_until_not_following(&subject).await;
}

/// Waits until a page of the admin port has this status, and returns it.
async fn page_with(admin: SocketAddr, path: &str, status: u16) -> String {
    soon(async {
        loop {
            let page = get(admin, path).await;
            if page.status == status {
                return page.body;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_server_is_ready_while_its_custom_storage_answers() {
    let (faulty, server) = served().await;
    let mut health = HealthClient::new(server.channel());
    let mut health = soon(health.watch(HealthCheckRequest::default())).await.unwrap().into_inner();
    let mut is_serving = async || soon(health.message()).await.unwrap().unwrap().status() == ServingStatus::Serving;
    assert!(is_serving().await);
    page_with(server.admin, "/ready", 200).await;

    faulty.set_state(UNREACHABLE);
    // The follower of the log receives this change, and asks for the next one.
    faulty.truth.create(&[SessionKey::new(0, 1)], None).await.unwrap();
    assert_eq!(page_with(server.admin, "/ready", 503).await, "the storage is unreachable\n");
    assert!(!is_serving().await);
    assert!(get(server.admin, "/metrics").await.body.contains("\nsessiond_storage_up 0\n"));

    faulty.set_state(HEALTHY);
    page_with(server.admin, "/ready", 200).await;
    assert!(is_serving().await);
}

#[tokio::test]
async fn a_server_reports_why_its_custom_storage_refuses_changes() {
    let (faulty, server) = served().await;
    page_with(server.admin, "/writable", 200).await;
    faulty.set_state(REFUSES);
    let why = page_with(server.admin, "/writable", 503).await;
    assert!(why.starts_with("too_few_replicas: the store has too few replicas (secret detail); to fix it, "), "{why}");
    assert_eq!(get(server.admin, "/ready").await.status, 200);
    let metrics = get(server.admin, "/metrics").await.body;
    assert!(metrics.contains("\nsessiond_storage_writable{cause=\"too_few_replicas\"} 0\n"), "{metrics}");
    let service = "sessiond.v1.SessionService/write".to_owned();
    let health = async || {
        let mut client = HealthClient::new(server.channel());
        let answer = soon(client.check(HealthCheckRequest { service: service.clone() })).await.unwrap();
        answer.into_inner().status()
    };
    soon(async { while health().await != ServingStatus::NotServing {} }).await;
    faulty.set_state(HEALTHY);
    page_with(server.admin, "/writable", 200).await;
    soon(async { while health().await != ServingStatus::Serving {} }).await;
}

#[tokio::test]
async fn a_server_exits_when_a_task_of_its_custom_storage_panics() {
    let (faulty, server) = served().await;
    faulty.set_state(LOSES_A_TASK);
    // Nobody has told it to stop.
    let ended = server.ended().await;
    assert!(matches!(ended, Err(ServerError::FailedTask("a task of the storage"))), "{ended:?}");
}

#[tokio::test]
async fn a_server_waits_for_a_custom_storage_that_does_not_answer_yet() {
    let faulty = faulty();
    faulty.set_state(UNREACHABLE);
    let refused = Running::try_with(config_over(&faulty)).await;
    assert!(matches!(refused, Err(ServerError::Storage(StorageError::Unavailable(_)))));

    let config = config_over(&faulty).storage_wait(StorageWait::Forever);
    let starting = tokio::spawn(Running::with(config));
    let calls = faulty.log_calls.load(Ordering::SeqCst);
    soon(async {
        while faulty.log_calls.load(Ordering::SeqCst) < calls + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    faulty.set_state(HEALTHY);
    let server = soon(starting).await.unwrap();
    assert!(create(&server.sessions(), 0, 1).await);
}
