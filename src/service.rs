//! The gRPC services of a registry, without a server around them.
//!
//! [`Service`] answers the calls of `sessiond.v1.SessionService` and `LeaseService` from a [`SessionSubject`], within
//! the limits of [`ServiceOptions`]. [`server`] runs it together with TLS, authentication, health and metrics. Use it
//! directly to serve the registry from an HTTP/2 server of your own:
//!
//! ```no_run
//! use std::sync::Arc;
//! use sessiond::{
//!     service::{ResponseBody, Service, ServiceOptions, WireEncoder},
//!     storage::memory::{MemoryOptions, MemoryStorage},
//!     subject::{SessionSubject, SubjectOptions},
//! };
//!
//! # async fn example(request: http::Request<hyper::body::Incoming>) -> Result<(), Box<dyn std::error::Error>> {
//! let storage = Arc::new(MemoryStorage::new(MemoryOptions::default()));
//! let subject = SessionSubject::start(storage, SubjectOptions::default(), WireEncoder).await?;
//! let service = Service::new(Arc::new(subject), ServiceOptions::default());
//!
//! // For each HTTP/2 request:
//! let response: http::Response<ResponseBody> = service.clone().call(request).await;
//! # Ok(())
//! # }
//! ```
//!
//! A [`CallTracer`] creates a trace span for each call. The server uses it; `Service` alone does not.
//!
//! [`server`]: crate::server

mod call_stats;
mod convert;
mod deadline;
mod dispatch;
mod encode;
mod error;
mod lease;
mod lookup;
mod message;
mod method;
mod response;
mod subscribe;
mod trace;

use std::{sync::Arc, time::Duration};

use futures_util::stream;
use tonic::{Request, Response, Status};

use crate::{
    proto::{
        self, BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest,
        BatchDestroySessionsResponse, BatchHasSessionsRequest, BatchHasSessionsResponse, BatchLookupSessionsRequest,
        BatchLookupSessionsResponse, CreateSessionRequest, CreateSessionResponse, DestroySessionRequest,
        DestroySessionResponse, HasSessionRequest, HasSessionResponse, LookupSessionRequest, LookupSessionResponse,
        SubscribeRequest, SubscribeResponse, session_service_server::SessionService,
    },
    session::{LeaseId, MAX_BATCH, SessionKey},
    storage::{Answers, CreateOptions, Creation, Place, StorageError, Takeover},
    subject::{SessionSubject, Start},
};

use self::{
    convert::{session_key, session_keys},
    lookup::HOLDER_TRIES,
    subscribe::ObserverBody,
};

pub(crate) use self::{
    call_stats::{Begun, CallStats, MethodStats, Shard},
    method::Method,
};
pub use self::{
    dispatch::Service,
    encode::WireEncoder,
    error::ServiceError,
    response::ResponseBody,
    trace::{CallSpan, CallTracer, TracedCall},
};

/// The limits of each call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceOptions {
    /// The maximum size of a request, in bytes.
    pub max_message_bytes: usize,
    /// The maximum memory that all incomplete requests together may take, in bytes.
    pub max_pending_bytes: usize,
    /// The maximum number of sessions in a batch. Values above [`MAX_BATCH`] mean [`MAX_BATCH`].
    pub max_batch: usize,
    /// How long a unary call may take from its first byte to its response, and a stream until it is open.
    pub call_timeout: Duration,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            max_message_bytes: 4 << 20,
            max_pending_bytes: 1 << 30,
            max_batch: MAX_BATCH,
            call_timeout: Duration::from_secs(30),
        }
    }
}

impl ServiceOptions {
    setters!(const
        max_message_bytes: usize,
        max_pending_bytes: usize,
        max_batch: usize,
        call_timeout: Duration,
    );
}

/// Implements both services.
#[derive(Clone, Debug)]
struct Calls {
    subject: Arc<SessionSubject>,
    options: ServiceOptions,
}

impl Calls {
    fn session_keys(&self, auth_key_ids: &[i64], session_ids: &[i64]) -> Result<Vec<SessionKey>, ServiceError> {
        session_keys(auth_key_ids, session_ids, self.options.max_batch.min(MAX_BATCH))
    }
}

#[tonic::async_trait]
impl SessionService for Calls {
    async fn has_session(&self, request: Request<HasSessionRequest>) -> Result<Response<HasSessionResponse>, Status> {
        let HasSessionRequest { session_id, auth_key_id } = request.into_inner();
        let exists = *first(&self.subject.has(&[session_key(auth_key_id, session_id)?]).await?)?;
        Ok(Response::new(HasSessionResponse { exists }))
    }

    async fn lookup_session(
        &self,
        request: Request<LookupSessionRequest>,
    ) -> Result<Response<LookupSessionResponse>, Status> {
        let LookupSessionRequest { session_id, auth_key_id } = request.into_inner();
        Ok(Response::new(self.lookup(session_key(auth_key_id, session_id)?).await?))
    }

    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let request = request.into_inner();
        let session = session_key(request.auth_key_id, request.session_id)?;
        let options = create_options(request.lease_id, request.only_from_lease_id)?;
        let mut tries = HOLDER_TRIES;
        loop {
            let (Creation { created, lease }, place) = {
                let answers = self.subject.create_with(&[session], options).await.map_err(create_error)?;
                let place = if request.with_place { answers.places.first().map(convert::place) } else { None };
                (*first(&answers.sessions)?, place)
            };
            let Some(other) = lease.filter(|lease| options.lease != Some(*lease)) else {
                return Ok(Response::new(CreateSessionResponse { created, lease: None, place }));
            };
            let holder = self.holder(other).await?;
            tries -= 1;
            // If that lease has ended meanwhile, it no longer holds the session, so the call is made again. A response
            // without a lease would mean that the caller's lease holds the session.
            if holder.is_some() || tries == 0 {
                let holder = holder.unwrap_or(proto::Lease { lease_id: other.number(), owner: String::new() });
                return Ok(Response::new(CreateSessionResponse { created, lease: Some(holder), place }));
            }
        }
    }

    async fn destroy_session(
        &self,
        request: Request<DestroySessionRequest>,
    ) -> Result<Response<DestroySessionResponse>, Status> {
        let request = request.into_inner();
        let session = session_key(request.auth_key_id, request.session_id)?;
        let lease = LeaseId::from_number(request.lease_id);
        let Answers { sessions, places } = self.subject.destroy_with(&[session], lease).await?;
        let place = if request.with_place { places.first().map(convert::place) } else { None };
        Ok(Response::new(DestroySessionResponse { destroyed: *first(&sessions)?, place }))
    }

    async fn batch_has_sessions(
        &self,
        request: Request<BatchHasSessionsRequest>,
    ) -> Result<Response<BatchHasSessionsResponse>, Status> {
        let BatchHasSessionsRequest { session_ids, auth_key_ids } = request.into_inner();
        let sessions = self.session_keys(&auth_key_ids, &session_ids)?;
        let exists = self.subject.has(&sessions).await?;
        Ok(Response::new(BatchHasSessionsResponse { exists }))
    }

    async fn batch_lookup_sessions(
        &self,
        request: Request<BatchLookupSessionsRequest>,
    ) -> Result<Response<BatchLookupSessionsResponse>, Status> {
        let BatchLookupSessionsRequest { session_ids, auth_key_ids } = request.into_inner();
        let sessions = self.session_keys(&auth_key_ids, &session_ids)?;
        let found = self.subject.lookup(&sessions).await?;
        Ok(Response::new(BatchLookupSessionsResponse {
            exists: found.iter().map(|found| found.exists).collect(),
            lease_ids: found.iter().map(|found| convert::lease_number(found.lease)).collect(),
        }))
    }

    async fn batch_create_sessions(
        &self,
        request: Request<BatchCreateSessionsRequest>,
    ) -> Result<Response<BatchCreateSessionsResponse>, Status> {
        let request = request.into_inner();
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let options = create_options(request.lease_id, request.only_from_lease_id)?;
        let answers = self.subject.create_with(&sessions, options).await.map_err(create_error)?;
        let Answers { sessions, places } = answers;
        let lease_ids = match request.only_from_lease_id {
            Some(_) => sessions.iter().map(|creation| convert::lease_number(creation.lease)).collect(),
            None => Vec::new(),
        };
        let created = sessions.into_iter().map(|creation| creation.created).collect();
        let places = places_if(request.with_place, &places);
        Ok(Response::new(BatchCreateSessionsResponse { created, lease_ids, places }))
    }

    async fn batch_destroy_sessions(
        &self,
        request: Request<BatchDestroySessionsRequest>,
    ) -> Result<Response<BatchDestroySessionsResponse>, Status> {
        let request = request.into_inner();
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let lease = LeaseId::from_number(request.lease_id);
        let Answers { sessions: destroyed, places } = self.subject.destroy_with(&sessions, lease).await?;
        let places = places_if(request.with_place, &places);
        Ok(Response::new(BatchDestroySessionsResponse { destroyed, places }))
    }

    /// Always empty: the stream is sent by [`ObserverBody`], which shares the encoded events between observers.
    type SubscribeStream = stream::Empty<Result<SubscribeResponse, Status>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        let heartbeat = convert::heartbeat(request.heartbeat)?;
        let options = convert::observe_options(request, self.subject.max_filter_ids())?;
        let resumes = matches!(options.start, Start::After(_));
        let observer = self.subject.observe(options).await.map_err(ServiceError::from)?;
        Ok(ObserverBody::new(observer, heartbeat, resumes).in_place_of(stream::empty()))
    }
}

fn create_error(error: StorageError) -> ServiceError {
    match error {
        StorageError::UnknownLease(lease) => ServiceError::CreateUnderUnknownLease(lease.number()),
        error => error.into(),
    }
}

/// Returns the options of a create. `only_from` requires a lease.
fn create_options(lease_id: u64, only_from: Option<u64>) -> Result<CreateOptions, ServiceError> {
    let lease = LeaseId::from_number(lease_id);
    let takeover = match only_from {
        Some(_) if lease.is_none() => return Err(ServiceError::LeaseIdMissing),
        Some(from) => Takeover::OnlyFrom(LeaseId::from_number(from)),
        None => Takeover::Always,
    };
    Ok(CreateOptions { lease, takeover })
}

fn places_if(wanted: bool, places: &[Place]) -> Vec<proto::Place> {
    if wanted { places.iter().map(convert::place).collect() } else { Vec::new() }
}

/// Returns the answer for the session of a single call.
fn first<T>(answers: &[T]) -> Result<&T, StorageError> {
    answers.first().ok_or_else(|| StorageError::Broken("the storage returned no answer for the session".into()))
}
