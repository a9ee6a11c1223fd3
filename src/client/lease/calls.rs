//! The calls that grant, keep alive and revoke leases, and that change sessions under a lease.

use std::time::Duration;

use crate::{
    client::{Client, ClientError},
    duration, proto,
    session::{LeaseId, SessionKey},
};

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// The id of the lease.
    pub id: LeaseId,
    /// How long the lease lives without being kept alive.
    pub ttl: Duration,
}

/// The calls that manage leases, which [`Client::lease`] makes for you, and those that change sessions under a lease.
impl Client {
    /// Grants a lease that expires after `ttl` (1 s to 24 h) unless it is kept alive. [`Client::lease`] also keeps it
    /// alive.
    ///
    /// `owner` is at most 128 bytes, by convention the address at which the gateway can be reached.
    ///
    /// If you retry because the answer was lost, the first lease expires after its ttl.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseGrant, ClientError> {
        let request = proto::GrantLeaseRequest { ttl: Some(duration::to_proto(ttl)), owner: owner.to_owned() };
        let answer = self.within_timeout(self.leases.clone().grant_lease(request)).await?;
        let id = LeaseId::from_number(answer.lease_id).ok_or(ClientError::Protocol("a lease without an id"))?;
        Ok(LeaseGrant { id, ttl: required_ttl(answer.ttl)? })
    }

    /// Extends a lease to its full ttl from now, and returns that ttl.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails. [`ClientError::is_lease_gone`] is true if the lease has ended or
    /// lingers.
    pub async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, ClientError> {
        let request = proto::KeepLeaseAliveRequest { lease_id: lease.number() };
        required_ttl(self.within_timeout(self.leases.clone().keep_lease_alive(request)).await?.ttl)
    }

    /// Ends a lease and destroys the sessions under it. Returns how many were destroyed.
    ///
    /// The lease ends before its sessions do. Once the server has begun, it finishes even if the call is dropped or
    /// times out.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails. [`ClientError::is_lease_gone`] is true if the lease has already
    /// ended.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, ClientError> {
        self.end_lease(lease, Duration::ZERO).await
    }

    pub(super) async fn end_lease(&self, lease: LeaseId, linger: Duration) -> Result<u64, ClientError> {
        let request = proto::RevokeLeaseRequest { lease_id: lease.number(), linger: Some(duration::to_proto(linger)) };
        Ok(self.within_timeout(self.leases.clone().revoke_lease(request)).await?.sessions_destroyed)
    }

    /// Lets a lease linger for `linger`, at most 1 h, before it ends.
    ///
    /// Use this to shut a gateway down. Its clients reconnect through other gateways, which take over their sessions,
    /// and no observer sees those sessions disappear. The remaining sessions are destroyed when the lease ends.
    ///
    /// While it lingers, the lease accepts no new sessions and cannot be kept alive, and any gateway may take its
    /// sessions. Another call of this method or of [`revoke_lease`](Self::revoke_lease) can only bring the end forward.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails. [`ClientError::is_lease_gone`] is true if the lease has already
    /// ended.
    pub async fn linger_lease(&self, lease: LeaseId, linger: Duration) -> Result<(), ClientError> {
        self.end_lease(lease, linger).await.map(drop)
    }

    /// Creates a session under a lease, which destroys the session when it ends. Returns true if this call created the
    /// session.
    ///
    /// An existing session moves to this lease, because its client has reconnected through this gateway.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails. [`ClientError::is_lease_gone`] is true if the lease has ended or
    /// lingers.
    pub async fn create_under(&self, session: SessionKey, lease: LeaseId) -> Result<bool, ClientError> {
        Ok(self.create_with(session, lease.number(), false).await?.value)
    }

    /// Destroys a session only if it is under this lease. Returns true if this call destroyed it.
    ///
    /// Returns false if the session or the lease does not exist, or if the session is under another lease. Late
    /// clean-up by a gateway therefore cannot destroy a session that has moved to another one.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn destroy_under(&self, session: SessionKey, lease: LeaseId) -> Result<bool, ClientError> {
        Ok(self.destroy_with(session, lease.number(), false).await?.value)
    }

    /// Does what [`create_under`](Self::create_under) does for many sessions, and returns one value per session, in
    /// order.
    ///
    /// Large batches are split as in [`batch_create`](Self::batch_create).
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails, as [`batch_create`](Self::batch_create) does.
    /// [`ClientError::is_lease_gone`] is true if the lease has ended or lingers.
    pub async fn batch_create_under(&self, sessions: &[SessionKey], lease: LeaseId) -> Result<Vec<bool>, ClientError> {
        Ok(self.batch_create_with(sessions, lease.number(), false).await?.value)
    }

    /// Does what [`destroy_under`](Self::destroy_under) does for many sessions, and returns one value per session, in
    /// order.
    ///
    /// Large batches are split as in [`batch_destroy`](Self::batch_destroy).
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails, as [`batch_destroy`](Self::batch_destroy) does.
    pub async fn batch_destroy_under(&self, sessions: &[SessionKey], lease: LeaseId) -> Result<Vec<bool>, ClientError> {
        Ok(self.batch_destroy_with(sessions, lease.number(), false).await?.value)
    }
}

fn required_ttl(ttl: Option<prost_types::Duration>) -> Result<Duration, ClientError> {
    ttl.and_then(duration::from_proto).ok_or(ClientError::Protocol("a lease without a ttl"))
}
