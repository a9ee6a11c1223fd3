//! A scripted server: it keeps a set of sessions and hands every Subscribe call to the test.

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use sessiond::proto::{
    BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest, BatchDestroySessionsResponse,
    BatchHasSessionsRequest, BatchHasSessionsResponse, BatchLookupSessionsRequest, BatchLookupSessionsResponse,
    CreateSessionRequest, CreateSessionResponse, DestroySessionRequest, DestroySessionResponse, HasSessionRequest,
    HasSessionResponse, Heartbeat, LookupSessionRequest, LookupSessionResponse, Reset, ResetReason, Session,
    SessionEvent, SessionEventType, SessionEvents, Snapshot, SubscribeRequest, SubscribeResponse, Subscribed, Synced,
    session_service_server::{SessionService, SessionServiceServer},
    subscribe_response::Body,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use tonic_health::server::HealthReporter;

/// Far longer than any step takes. It only ends tests that hang.
const DEADLINE: Duration = Duration::from_secs(30);

/// Awaits the future. Panics if it does not complete before the deadline.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the future completes within 30 s")
}

/// Returns a URL at which nothing listens.
pub(crate) async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

type Messages = mpsc::Receiver<Result<SubscribeResponse, Status>>;

pub(crate) struct Fake {
    pub(crate) addr: String,
    pub(crate) health: HealthReporter,
    streams: mpsc::Receiver<StreamCall>,
    registry: Arc<Registry>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Registry {
    /// The existing sessions, as (auth key, session).
    sessions: Mutex<BTreeSet<(i64, i64)>>,
    /// For each batch call, its size and whether it listed auth keys.
    batches: Mutex<Vec<(usize, bool)>>,
    refusal: Mutex<Option<Status>>,
    /// Whether calls are left unanswered.
    stuck: Mutex<bool>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        let (sender, streams) = mpsc::channel(16);
        let registry = Arc::new(Registry::default());
        let service = FakeService { streams: sender, registry: registry.clone() };
        let (health, health_service) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder()
            .add_service(SessionServiceServer::new(service))
            .add_service(health_service)
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { addr, health, streams, registry, server }
    }

    /// Waits for the next call of Subscribe.
    pub(crate) async fn stream(&mut self) -> StreamCall {
        soon(self.streams.recv()).await.expect("the server is running")
    }

    /// Refuses the next call that is not Subscribe.
    pub(crate) fn refuse(&self, status: Status) {
        *self.registry.refusal.lock().unwrap() = Some(status);
    }

    /// Leaves all later calls except Subscribe unanswered.
    pub(crate) fn stop_answering(&self) {
        *self.registry.stuck.lock().unwrap() = true;
    }

    /// Returns the size of each batch call so far, and whether it listed auth keys.
    pub(crate) fn batches(&self) -> Vec<(usize, bool)> {
        self.registry.batches.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A call of Subscribe that the test has yet to answer.
pub(crate) struct StreamCall {
    pub(crate) request: SubscribeRequest,
    answer: oneshot::Sender<Result<Messages, Status>>,
}

impl StreamCall {
    /// Opens the stream and sends `subscribed`.
    pub(crate) async fn accept(self, cursor: &str) -> Stream {
        let stream = self.accept_in_silence();
        let heartbeat = Some(self::duration(Duration::from_secs(15)));
        stream
            .send(
                cursor,
                Body::Subscribed(Subscribed { registry_id: "fake".to_owned(), heartbeat, ..Default::default() }),
            )
            .await;
        stream
    }

    /// Opens the stream and sends nothing.
    pub(crate) fn accept_in_silence(self) -> Stream {
        let (sender, messages) = mpsc::channel(16);
        assert!(self.answer.send(Ok(messages)).is_ok(), "the client is waiting for an answer");
        Stream(sender)
    }

    pub(crate) fn refuse(self, status: Status) {
        assert!(self.answer.send(Err(status)).is_ok(), "the client is waiting for an answer");
    }
}

/// An open stream. Dropping it ends the stream without an error.
pub(crate) struct Stream(mpsc::Sender<Result<SubscribeResponse, Status>>);

impl Stream {
    pub(crate) async fn send(&self, cursor: &str, body: Body) {
        let message = SubscribeResponse { cursor: cursor.to_owned(), body: Some(body) };
        soon(self.0.send(Ok(message))).await.expect("the client reads the stream");
    }

    pub(crate) async fn fail(self, status: Status) {
        soon(self.0.send(Err(status))).await.expect("the client reads the stream");
    }

    /// Waits until the client has closed the stream.
    pub(crate) async fn gone(&self) {
        soon(self.0.closed()).await;
    }
}

pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap()
}

pub(crate) fn snapshot(ids: &[i64]) -> Body {
    let sessions = ids.iter().map(|&session_id| Session { session_id, auth_key_id: 0, ..Default::default() }).collect();
    Body::Snapshot(Snapshot { sessions })
}

pub(crate) fn synced(session_count: u64) -> Body {
    Body::Synced(Synced { session_count, ..Default::default() })
}

pub(crate) fn created(ids: &[i64]) -> Body {
    let event = |&session_id| SessionEvent {
        r#type: SessionEventType::Created.into(),
        session_id,
        auth_key_id: 7,
        reason: 0,
        ..Default::default()
    };
    Body::Events(SessionEvents { events: ids.iter().map(event).collect(), ..Default::default() })
}

pub(crate) fn reset(reason: ResetReason) -> Body {
    Body::Reset(Reset { reason: reason.into() })
}

pub(crate) fn heartbeat() -> Body {
    Body::Heartbeat(Heartbeat::default())
}

struct FakeService {
    streams: mpsc::Sender<StreamCall>,
    registry: Arc<Registry>,
}

impl FakeService {
    async fn admit(&self) -> Result<(), Status> {
        if let Some(status) = self.registry.refusal.lock().unwrap().take() {
            return Err(status);
        }
        if *self.registry.stuck.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn each(
        &self,
        session_ids: Vec<i64>,
        auth_key_ids: Vec<i64>,
        mut answer: impl FnMut(&mut BTreeSet<(i64, i64)>, (i64, i64)) -> bool,
    ) -> Vec<bool> {
        self.registry.batches.lock().unwrap().push((session_ids.len(), !auth_key_ids.is_empty()));
        let mut auth_key_ids = auth_key_ids.into_iter();
        let mut sessions = self.registry.sessions.lock().unwrap();
        session_ids.into_iter().map(|id| answer(&mut sessions, (auth_key_ids.next().unwrap_or(0), id))).collect()
    }
}

#[tonic::async_trait]
impl SessionService for FakeService {
    async fn has_session(&self, request: Request<HasSessionRequest>) -> Result<Response<HasSessionResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let key = (request.auth_key_id, request.session_id.unwrap());
        Ok(Response::new(HasSessionResponse { exists: self.registry.sessions.lock().unwrap().contains(&key) }))
    }

    async fn lookup_session(
        &self,
        _: Request<LookupSessionRequest>,
    ) -> Result<Response<LookupSessionResponse>, Status> {
        Err(Status::unimplemented("a fake has no leases"))
    }

    async fn batch_lookup_sessions(
        &self,
        _: Request<BatchLookupSessionsRequest>,
    ) -> Result<Response<BatchLookupSessionsResponse>, Status> {
        Err(Status::unimplemented("a fake has no leases"))
    }

    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let key = (request.auth_key_id, request.session_id.unwrap());
        Ok(Response::new(CreateSessionResponse {
            created: self.registry.sessions.lock().unwrap().insert(key),
            ..Default::default()
        }))
    }

    async fn destroy_session(
        &self,
        request: Request<DestroySessionRequest>,
    ) -> Result<Response<DestroySessionResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let key = (request.auth_key_id, request.session_id.unwrap());
        Ok(Response::new(DestroySessionResponse {
            destroyed: self.registry.sessions.lock().unwrap().remove(&key),
            ..Default::default()
        }))
    }

    async fn batch_has_sessions(
        &self,
        request: Request<BatchHasSessionsRequest>,
    ) -> Result<Response<BatchHasSessionsResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let exists = self.each(request.session_ids, request.auth_key_ids, |sessions, key| sessions.contains(&key));
        Ok(Response::new(BatchHasSessionsResponse { exists }))
    }

    async fn batch_create_sessions(
        &self,
        request: Request<BatchCreateSessionsRequest>,
    ) -> Result<Response<BatchCreateSessionsResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let created = self.each(request.session_ids, request.auth_key_ids, BTreeSet::insert);
        Ok(Response::new(BatchCreateSessionsResponse { created, ..Default::default() }))
    }

    async fn batch_destroy_sessions(
        &self,
        request: Request<BatchDestroySessionsRequest>,
    ) -> Result<Response<BatchDestroySessionsResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let destroyed = self.each(request.session_ids, request.auth_key_ids, |sessions, key| sessions.remove(&key));
        Ok(Response::new(BatchDestroySessionsResponse { destroyed, ..Default::default() }))
    }

    type SubscribeStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<SubscribeResponse, Status>> + Send + 'static>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (answer, answered) = oneshot::channel();
        let call = StreamCall { request: request.into_inner(), answer };
        self.streams.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
        let messages = answered.await.map_err(|_| Status::unavailable("the test dropped the call"))??;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
