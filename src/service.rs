//! The gRPC edge: requests become values, values become responses.

mod convert;
mod deadline;
mod dispatch;
mod encode;
mod error;
mod lease;
mod lookup;
mod message;
mod response;
mod stats;
mod subscribe;
mod trace;

use std::{sync::Arc, time::Duration};

use crate::{
    proto::{
        self, BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest,
        BatchDestroySessionsResponse, BatchHasSessionsRequest, BatchHasSessionsResponse, CreateSessionRequest,
        CreateSessionResponse, DestroySessionRequest, DestroySessionResponse, HasSessionRequest, HasSessionResponse,
    },
    session::{LeaseId, MAX_BATCH, SessionKey},
    storage::{Answers, CreateOptions, Creation, Place, StorageError, Takeover},
    subject::SessionSubject,
};

use self::{
    convert::{session_key, session_keys},
    lookup::HOLDER_TRIES,
};

pub use self::{
    dispatch::Service,
    encode::WireEncoder,
    error::ServiceError,
    response::ResponseBody,
    trace::{CallSpan, CallTracer, TracedCall},
};
pub(crate) use self::{
    dispatch::{PATH, is_unary},
    stats::{Begun, CallStats, MethodStats, Shard},
};

/// The bounds of the calls.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// The longest request, in bytes.
    pub max_message_bytes: usize,
    /// How many bytes all requests together may take that have not come whole.
    pub max_pending_bytes: usize,
    /// How many sessions a batch may name; no more than [`MAX_BATCH`] in any case.
    pub max_batch: usize,
    /// How long a call may take, from its first byte to its answer; for a stream, to its opening.
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

/// The calls of the services, on values of the protocol.
#[derive(Clone, Debug)]
struct Calls {
    shared: Arc<Shared>,
}

/// What all calls have in common, behind one count of references.
#[derive(Debug)]
struct Shared {
    subject: Arc<SessionSubject>,
    options: ServiceOptions,
    limits: message::Limits,
}

impl Calls {
    fn session_keys(&self, auth_key_ids: &[i64], session_ids: &[i64]) -> Result<Vec<SessionKey>, ServiceError> {
        session_keys(auth_key_ids, session_ids, self.shared.options.max_batch.min(MAX_BATCH))
    }

    async fn has(self, request: HasSessionRequest) -> Result<HasSessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let exists = *first(&self.shared.subject.has(&[session]).await?)?;
        Ok(HasSessionResponse { exists })
    }

    async fn create(self, request: CreateSessionRequest) -> Result<CreateSessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let options = create_options(request.lease_id, request.only_from_lease_id)?;
        let mut tries = HOLDER_TRIES;
        loop {
            let (Creation { created, lease }, place) = {
                let answers = self.shared.subject.create_with(&[session], options).await.map_err(create_error)?;
                let place = if request.with_place { answers.places.first().map(convert::place) } else { None };
                (*first(&answers.sessions)?, place)
            };
            let Some(other) = lease.filter(|lease| options.lease != Some(*lease)) else {
                return Ok(CreateSessionResponse { created, lease: None, place });
            };
            // In a box, because it is rare and would make the future of every call larger.
            let holder = Box::pin(self.holder(other)).await?;
            tries -= 1;
            // If it has ended meanwhile, it no longer holds the session. An answer without it would say that the caller does.
            if holder.is_some() || tries == 0 {
                let holder = holder.unwrap_or(proto::Lease { lease_id: other.number(), owner: String::new() });
                return Ok(CreateSessionResponse { created, lease: Some(holder), place });
            }
        }
    }

    async fn destroy(self, request: DestroySessionRequest) -> Result<DestroySessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let lease = LeaseId::from_number(request.lease_id);
        let Answers { sessions, places } = self.shared.subject.destroy_with(&[session], lease).await?;
        let place = if request.with_place { places.first().map(convert::place) } else { None };
        Ok(DestroySessionResponse { destroyed: *first(&sessions)?, place })
    }

    async fn batch_has(self, request: BatchHasSessionsRequest) -> Result<BatchHasSessionsResponse, ServiceError> {
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let exists = self.shared.subject.has(&sessions).await?;
        Ok(BatchHasSessionsResponse { exists })
    }

    async fn batch_create(
        self,
        request: BatchCreateSessionsRequest,
    ) -> Result<BatchCreateSessionsResponse, ServiceError> {
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let options = create_options(request.lease_id, request.only_from_lease_id)?;
        let answers = self.shared.subject.create_with(&sessions, options).await.map_err(create_error)?;
        let Answers { sessions, places } = answers;
        let lease_ids = match request.only_from_lease_id {
            Some(_) => sessions.iter().map(|creation| convert::lease_number(creation.lease)).collect(),
            None => Vec::new(),
        };
        let created = sessions.into_iter().map(|creation| creation.created).collect();
        Ok(BatchCreateSessionsResponse { created, lease_ids, places: places_if(request.with_place, &places) })
    }

    async fn batch_destroy(
        self,
        request: BatchDestroySessionsRequest,
    ) -> Result<BatchDestroySessionsResponse, ServiceError> {
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let lease = LeaseId::from_number(request.lease_id);
        let Answers { sessions, places } = self.shared.subject.destroy_with(&sessions, lease).await?;
        Ok(BatchDestroySessionsResponse { destroyed: sessions, places: places_if(request.with_place, &places) })
    }
}

fn create_error(error: StorageError) -> ServiceError {
    match error {
        StorageError::UnknownLease(lease) => ServiceError::CreateUnderUnknownLease(lease.number()),
        error => error.into(),
    }
}

/// Sessions are taken only for a lease.
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

/// The answer for the one session that was asked about.
fn first<T>(answers: &[T]) -> Result<&T, StorageError> {
    answers.first().ok_or_else(|| StorageError::Broken("the storage gave no answer".into()))
}
