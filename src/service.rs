//! The gRPC edge: requests become values, values become responses.

mod convert;
mod deadline;
mod dispatch;
mod encode;
mod lease;
mod message;
mod response;
mod stats;
mod subscribe;
mod trace;

use std::{sync::Arc, time::Duration};

use crate::{
    proto::{
        BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest,
        BatchDestroySessionsResponse, BatchHasSessionsRequest, BatchHasSessionsResponse, CreateSessionRequest,
        CreateSessionResponse, DestroySessionRequest, DestroySessionResponse, HasSessionRequest, HasSessionResponse,
    },
    session::{LeaseId, SessionKey},
    status::{MAX_BATCH, ServiceError},
    storage::StorageError,
    subject::SessionSubject,
};

use self::convert::{session_key, session_keys};

pub use self::{
    dispatch::Service,
    encode::WireEncoder,
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
        let exists = first(&self.shared.subject.has(&[session]).await?)?;
        Ok(HasSessionResponse { exists })
    }

    async fn create(self, request: CreateSessionRequest) -> Result<CreateSessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let created = first(&self.create_under(&[session], request.lease_id).await?)?;
        Ok(CreateSessionResponse { created })
    }

    async fn destroy(self, request: DestroySessionRequest) -> Result<DestroySessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let lease = LeaseId::from_number(request.lease_id);
        let destroyed = first(&self.shared.subject.destroy(&[session], lease).await?)?;
        Ok(DestroySessionResponse { destroyed })
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
        let created = self.create_under(&sessions, request.lease_id).await?;
        Ok(BatchCreateSessionsResponse { created })
    }

    async fn batch_destroy(
        self,
        request: BatchDestroySessionsRequest,
    ) -> Result<BatchDestroySessionsResponse, ServiceError> {
        let sessions = self.session_keys(&request.auth_key_ids, &request.session_ids)?;
        let lease = LeaseId::from_number(request.lease_id);
        let destroyed = self.shared.subject.destroy(&sessions, lease).await?;
        Ok(BatchDestroySessionsResponse { destroyed })
    }

    async fn create_under(&self, sessions: &[SessionKey], lease_id: u64) -> Result<Vec<bool>, ServiceError> {
        self.shared.subject.create(sessions, LeaseId::from_number(lease_id)).await.map_err(|error| match error {
            StorageError::UnknownLease(_) => ServiceError::CreateUnderUnknownLease(lease_id),
            error => error.into(),
        })
    }
}

/// The answer for the one session that was asked about.
fn first(answers: &[bool]) -> Result<bool, StorageError> {
    answers.first().copied().ok_or_else(|| StorageError::Broken("the storage gave no answer".into()))
}
