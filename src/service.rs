//! The gRPC edge: requests become values, values become responses.

mod convert;
mod dispatch;
mod encode;
mod lease;
mod message;
mod response;
mod subscribe;

use std::sync::Arc;

use crate::{
    proto::{
        BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest,
        BatchDestroySessionsResponse, BatchHasSessionsRequest, BatchHasSessionsResponse, CreateSessionRequest,
        CreateSessionResponse, DestroySessionRequest, DestroySessionResponse, HasSessionRequest, HasSessionResponse,
    },
    session::{LeaseId, SessionKey},
    status::ServiceError,
    storage::StorageError,
    subject::SessionSubject,
};

use self::convert::{session_key, session_keys};

pub(crate) use self::dispatch::PATH;
pub use self::{dispatch::Service, encode::WireEncoder, response::ResponseBody};

/// The calls of the services, on values of the protocol.
#[derive(Clone, Debug)]
struct Calls {
    subject: Arc<SessionSubject>,
}

impl Calls {
    async fn has(self, request: HasSessionRequest) -> Result<HasSessionResponse, ServiceError> {
        let session = session_key(request.auth_key_id, request.session_id)?;
        let exists = first(&self.subject.has(&[session]).await?)?;
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
        let destroyed = first(&self.subject.destroy(&[session], lease).await?)?;
        Ok(DestroySessionResponse { destroyed })
    }

    async fn batch_has(self, request: BatchHasSessionsRequest) -> Result<BatchHasSessionsResponse, ServiceError> {
        let sessions = session_keys(&request.auth_key_ids, &request.session_ids)?;
        let exists = self.subject.has(&sessions).await?;
        Ok(BatchHasSessionsResponse { exists })
    }

    async fn batch_create(
        self,
        request: BatchCreateSessionsRequest,
    ) -> Result<BatchCreateSessionsResponse, ServiceError> {
        let sessions = session_keys(&request.auth_key_ids, &request.session_ids)?;
        let created = self.create_under(&sessions, request.lease_id).await?;
        Ok(BatchCreateSessionsResponse { created })
    }

    async fn batch_destroy(
        self,
        request: BatchDestroySessionsRequest,
    ) -> Result<BatchDestroySessionsResponse, ServiceError> {
        let sessions = session_keys(&request.auth_key_ids, &request.session_ids)?;
        let lease = LeaseId::from_number(request.lease_id);
        let destroyed = self.subject.destroy(&sessions, lease).await?;
        Ok(BatchDestroySessionsResponse { destroyed })
    }

    async fn create_under(&self, sessions: &[SessionKey], lease_id: u64) -> Result<Vec<bool>, ServiceError> {
        self.subject.create(sessions, LeaseId::from_number(lease_id)).await.map_err(|error| match error {
            StorageError::UnknownLease(_) => ServiceError::CreateUnderUnknownLease(lease_id),
            error => error.into(),
        })
    }
}

/// The answer for the one session that was asked about.
fn first(answers: &[bool]) -> Result<bool, StorageError> {
    answers.first().copied().ok_or_else(|| StorageError::Broken("the storage gave no answer".into()))
}
