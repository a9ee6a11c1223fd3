//! The calls that name a lease.

use std::time::Duration;

use crate::{
    client::{Client, ClientError},
    duration, proto,
    session::{LeaseId, SessionKey},
};

/// A lease as the registry granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// The lease.
    pub id: LeaseId,
    /// How long it lives without being kept alive.
    pub ttl: Duration,
}

/// Leases, call by call. [`Client::lease`] makes these calls by itself.
impl Client {
    /// Grants a lease that lives for `ttl` (1 s to 24 h) without being kept alive. `owner` is a label for people, at
    /// most 128 bytes.
    ///
    /// When the call is made again because its answer was lost, the first lease expires by itself.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseGrant, ClientError> {
        let request = proto::GrantLeaseRequest { ttl: Some(duration::to_proto(ttl)), owner: owner.to_owned() };
        let answer = self.within_timeout(self.leases.clone().grant_lease(request)).await?;
        let id = LeaseId::from_number(answer.lease_id).ok_or(ClientError::Protocol("a lease without an id"))?;
        Ok(LeaseGrant { id, ttl: required_ttl(answer.ttl)? })
    }

    /// Lets a lease live for its whole ttl from now on. Gives that ttl.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call; [`ClientError::is_lease_gone`] when it is.
    pub async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, ClientError> {
        let request = proto::KeepLeaseAliveRequest { lease_id: lease.number() };
        required_ttl(self.within_timeout(self.leases.clone().keep_lease_alive(request)).await?.ttl)
    }

    /// Ends a lease and destroys the sessions under it. Tells how many those were.
    ///
    /// The lease ends before its sessions do: once the server has begun, it carries this out even when the call is dropped
    /// or takes longer than the client's timeout.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call; [`ClientError::is_lease_gone`] when it is.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, ClientError> {
        let request = proto::RevokeLeaseRequest { lease_id: lease.number(), linger: None };
        Ok(self.within_timeout(self.leases.clone().revoke_lease(request)).await?.sessions_destroyed)
    }

    /// Lets a lease linger for up to 1 h before it ends. A gateway that shuts down does so: its clients come back through other
    /// gateways, which take their sessions, and no observer sees those disappear. The rest is destroyed at the end.
    ///
    /// Meanwhile nothing comes under the lease, it cannot be kept alive, and any gateway may take its sessions. To call this again, or
    /// [`revoke_lease`](Self::revoke_lease), can only bring the end forward.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call; [`ClientError::is_lease_gone`] when it is.
    pub async fn linger_lease(&self, lease: LeaseId, linger: Duration) -> Result<(), ClientError> {
        let request = proto::RevokeLeaseRequest { lease_id: lease.number(), linger: Some(duration::to_proto(linger)) };
        self.within_timeout(self.leases.clone().revoke_lease(request)).await?;
        Ok(())
    }

    /// [`create`](Self::create) under a lease, with which the session ends. A session that exists already moves to
    /// this lease: its client has come back through another gateway.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call; [`ClientError::is_lease_gone`] when the lease is.
    pub async fn create_under(&self, session: SessionKey, lease: LeaseId) -> Result<bool, ClientError> {
        self.create_with(session, lease.number()).await
    }

    /// [`destroy`](Self::destroy), but only while the session is under this lease: false when it is not, or there is
    /// no such lease. The late clean-up of a gateway does not destroy a session that has moved to another.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn destroy_under(&self, session: SessionKey, lease: LeaseId) -> Result<bool, ClientError> {
        self.destroy_with(session, lease.number()).await
    }

    /// [`create_under`](Self::create_under) for many sessions, as [`batch_create`](Self::batch_create) does it.
    ///
    /// # Errors
    ///
    /// As [`batch_create`](Self::batch_create); [`ClientError::is_lease_gone`] when the lease is.
    pub async fn batch_create_under(&self, sessions: &[SessionKey], lease: LeaseId) -> Result<Vec<bool>, ClientError> {
        self.batch_create_with(sessions, lease.number()).await
    }

    /// [`destroy_under`](Self::destroy_under) for many sessions, as [`batch_destroy`](Self::batch_destroy) does it.
    ///
    /// # Errors
    ///
    /// As [`batch_destroy`](Self::batch_destroy).
    pub async fn batch_destroy_under(&self, sessions: &[SessionKey], lease: LeaseId) -> Result<Vec<bool>, ClientError> {
        self.batch_destroy_with(sessions, lease.number()).await
    }
}

fn required_ttl(ttl: Option<prost_types::Duration>) -> Result<Duration, ClientError> {
    ttl.and_then(duration::from_proto).ok_or(ClientError::Protocol("a lease without a ttl"))
}
