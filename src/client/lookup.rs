//! Where sessions are, and how a lease takes them from another.

use super::{Client, ClientError, MAX_BATCH, convert};
use crate::{
    proto,
    session::{LeaseId, SessionKey},
};

/// What [`Client::lookup`] found out about a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Located {
    /// Whether it exists.
    pub exists: bool,
    /// The lease that it is under.
    pub lease: Option<LeaseHolder>,
}

/// A lease and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseHolder {
    /// The lease.
    pub id: LeaseId,
    /// Its owner, by convention the address at which the gateway can be reached. It never changes.
    pub owner: String,
}

/// What became of a session that [`Client::take`] was to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// Whether the session did not exist, and this call created it.
    pub created: bool,
    /// The lease that holds it. `None` if that is the one it was taken for.
    pub held_by: Option<LeaseHolder>,
}

/// What a call of a batch tells of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placed {
    /// For a lookup, whether it exists; for [`Client::batch_take`], whether this call created it.
    pub yes: bool,
    /// The lease that it is under.
    pub lease: Option<LeaseId>,
}

impl Client {
    /// Tells whether a session exists and which lease it is under, and so which gateway holds it.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn lookup(&self, session: SessionKey) -> Result<Located, ClientError> {
        let request =
            proto::LookupSessionRequest { session_id: Some(session.session_id.0), auth_key_id: session.auth_key_id.0 };
        let answer = self.within_timeout(self.calls.clone().lookup_session(request)).await?;
        Ok(Located { exists: answer.exists, lease: answer.lease.and_then(LeaseHolder::from_proto) })
    }

    /// Creates a session under a lease. If it exists, takes it only from `only_from` (`None`: from no lease), and from leases that
    /// have ended or linger. Tells who holds it if another lease does.
    ///
    /// With the lease that [`lookup`](Self::lookup) told, this takes the session from that lease, but not from one that took
    /// it later.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call; [`ClientError::is_lease_gone`] when `lease` is.
    pub async fn take(
        &self,
        session: SessionKey,
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Taken, ClientError> {
        let request = proto::CreateSessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id: lease.number(),
            only_from_lease_id: Some(only_from.map_or(0, LeaseId::number)),
            ..Default::default()
        };
        let answer = self.within_timeout(self.calls.clone().create_session(request)).await?;
        Ok(Taken { created: answer.created, held_by: answer.lease.and_then(LeaseHolder::from_proto) })
    }

    /// [`lookup`](Self::lookup) for many sessions, without the owners of their leases; the answers are in their order.
    ///
    /// More than [`MAX_BATCH`] sessions take several calls, one after the other.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn batch_lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Placed>, ClientError> {
        let mut all = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchLookupSessionsRequest { session_ids, auth_key_ids };
            let answer = self.within_timeout(self.calls.clone().batch_lookup_sessions(request)).await?;
            all.extend(placed(part, answer.exists, answer.lease_ids)?);
        }
        Ok(all)
    }

    /// Does what [`take`](Self::take) does for many sessions. Tells which lease each is under then: another one if that holds it.
    ///
    /// A gateway that has lost its lease registers its sessions again with `None`, and so steals none that have moved meanwhile.
    ///
    /// # Errors
    ///
    /// As [`batch_create`](Self::batch_create); [`ClientError::is_lease_gone`] when the lease is.
    pub async fn batch_take(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Vec<Placed>, ClientError> {
        let mut all = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchCreateSessionsRequest {
                session_ids,
                auth_key_ids,
                lease_id: lease.number(),
                only_from_lease_id: Some(only_from.map_or(0, LeaseId::number)),
                ..Default::default()
            };
            let answer = self.within_timeout(self.calls.clone().batch_create_sessions(request)).await?;
            all.extend(placed(part, answer.created, answer.lease_ids)?);
        }
        Ok(all)
    }
}

impl LeaseHolder {
    pub(super) fn from_proto(proto::Lease { lease_id, owner }: proto::Lease) -> Option<Self> {
        LeaseId::from_number(lease_id).map(|id| Self { id, owner })
    }
}

fn placed(
    sessions: &[SessionKey],
    answers: Vec<bool>,
    lease_ids: Vec<u64>,
) -> Result<impl Iterator<Item = Placed>, ClientError> {
    if answers.len() != sessions.len() || lease_ids.len() != sessions.len() {
        return Err(ClientError::Protocol("a batch was not answered with one lease a session"));
    }
    let placed = |(yes, lease)| Placed { yes, lease: LeaseId::from_number(lease) };
    Ok(answers.into_iter().zip(lease_ids).map(placed))
}
