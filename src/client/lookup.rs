//! Looking up where sessions are, and taking them over from another lease.

use super::{Client, ClientError, MAX_BATCH, Placed, convert, place};
use crate::{
    proto,
    session::{LeaseId, SessionKey},
};

/// Where a session is: which lease, and so which gateway, holds it. Returned by [`Client::lookup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Located {
    /// Whether the session exists.
    pub exists: bool,
    /// The lease that the session is under, if any.
    pub lease: Option<LeaseHolder>,
}

/// A lease and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseHolder {
    /// The id of the lease.
    pub id: LeaseId,
    /// The lease's owner, by convention the address at which the gateway can be reached. It never changes.
    pub owner: String,
}

/// The result of [`Client::take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// Whether the session did not exist and this call created it.
    pub created: bool,
    /// The other lease that the session stays under. `None` if the session is now under the lease that was passed.
    pub held_by: Option<LeaseHolder>,
}

/// Where one session of a [`Client::batch_lookup`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Whether the session exists.
    pub exists: bool,
    /// The lease that the session is under, if any.
    pub lease: Option<LeaseId>,
}

/// The result for one session of a [`Client::batch_take`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimed {
    /// Whether the session did not exist and this call created it.
    pub created: bool,
    /// The lease that the session is under after the call, if any.
    pub lease: Option<LeaseId>,
}

impl Client {
    /// Returns whether a session exists and which lease it is under, and thereby which gateway holds it.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn lookup(&self, session: SessionKey) -> Result<Located, ClientError> {
        let request =
            proto::LookupSessionRequest { session_id: Some(session.session_id.0), auth_key_id: session.auth_key_id.0 };
        let answer = self.within_timeout(self.calls.clone().lookup_session(request)).await?;
        Ok(Located { exists: answer.exists, lease: answer.lease.and_then(LeaseHolder::from_proto) })
    }

    /// Creates a session under `lease`, or moves it there if it is under `only_from` or under no lease.
    ///
    /// If the session is under any other lease, it stays there, and [`Taken::held_by`] says which one. A lease that has
    /// ended or lingers does not protect its sessions: they count as being under no lease. If the session is already
    /// under `lease`, nothing changes, so it is safe to retry this.
    ///
    /// Choose `only_from` by what you want:
    ///
    /// - To take a session over because its client has just connected here, pass the lease that
    ///   [`lookup`](Self::lookup) returned. If a third gateway has taken the session since, it keeps it.
    /// - To register sessions again after the gateway lost its lease, pass `None`. Sessions that other gateways have
    ///   taken since stay there.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails. [`ClientError::is_lease_gone`] is true if `lease` has ended or
    /// lingers.
    pub async fn take(
        &self,
        session: SessionKey,
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Taken, ClientError> {
        Ok(self.take_with(session, lease, only_from, false).await?.value)
    }

    pub(super) async fn take_with(
        &self,
        session: SessionKey,
        lease: LeaseId,
        only_from: Option<LeaseId>,
        with_place: bool,
    ) -> Result<Placed<Taken>, ClientError> {
        let request = proto::CreateSessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id: lease.number(),
            only_from_lease_id: Some(only_from.map_or(0, LeaseId::number)),
            with_place,
        };
        let answer = self.within_timeout(self.calls.clone().create_session(request)).await?;
        let value = Taken { created: answer.created, held_by: answer.lease.and_then(LeaseHolder::from_proto) };
        Ok(Placed { value, places: convert::places(answer.place) })
    }

    /// Does what [`lookup`](Self::lookup) does for many sessions, without the owners, and returns one value per
    /// session, in order.
    ///
    /// More than [`MAX_BATCH`] sessions are sent as several calls, one after another.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Found>, ClientError> {
        let mut all = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchLookupSessionsRequest { session_ids, auth_key_ids };
            let answer = self.within_timeout(self.calls.clone().batch_lookup_sessions(request)).await?;
            let found = with_leases(part, answer.exists, answer.lease_ids)?;
            all.extend(found.map(|(exists, lease)| Found { exists, lease }));
        }
        Ok(all)
    }

    /// Does what [`take`](Self::take) does for many sessions. Returns the lease that each is under afterwards, in
    /// order.
    ///
    /// A gateway that has lost its lease passes `None` as `only_from` to register its sessions again under its new
    /// lease. This leaves sessions that have moved to another gateway where they are.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails, as [`batch_create`](Self::batch_create) does.
    /// [`ClientError::is_lease_gone`] is true if `lease` has ended or lingers.
    pub async fn batch_take(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Vec<Claimed>, ClientError> {
        Ok(self.batch_take_with(sessions, lease, only_from, false).await?.value)
    }

    pub(super) async fn batch_take_with(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
        only_from: Option<LeaseId>,
        with_place: bool,
    ) -> Result<Placed<Vec<Claimed>>, ClientError> {
        let mut all = Placed { value: Vec::with_capacity(sessions.len()), places: Vec::new() };
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchCreateSessionsRequest {
                session_ids,
                auth_key_ids,
                lease_id: lease.number(),
                only_from_lease_id: Some(only_from.map_or(0, LeaseId::number)),
                with_place,
            };
            let answer = self.within_timeout(self.calls.clone().batch_create_sessions(request)).await?;
            let claimed = with_leases(part, answer.created, answer.lease_ids)?;
            all.value.extend(claimed.map(|(created, lease)| Claimed { created, lease }));
            place::advance(&mut all.places, convert::places(answer.places));
        }
        Ok(all)
    }
}

impl LeaseHolder {
    pub(super) fn from_proto(proto::Lease { lease_id, owner }: proto::Lease) -> Option<Self> {
        LeaseId::from_number(lease_id).map(|id| Self { id, owner })
    }
}

fn with_leases(
    sessions: &[SessionKey],
    answers: Vec<bool>,
    lease_ids: Vec<u64>,
) -> Result<impl Iterator<Item = (bool, Option<LeaseId>)>, ClientError> {
    if answers.len() != sessions.len() || lease_ids.len() != sessions.len() {
        return Err(ClientError::Protocol("a batch response does not have one lease for each session"));
    }
    Ok(answers.into_iter().zip(lease_ids).map(|(answer, lease)| (answer, LeaseId::from_number(lease))))
}
