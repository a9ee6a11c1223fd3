//! Calls that also return places in the change log.

use super::{Claimed, Client, ClientError, NO_LEASE, Place, Taken};
use crate::session::{LeaseId, SessionKey};

/// The result of a call, and the places in the change log at which it is true. Returned by the calls of [`WithPlace`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placed<T> {
    /// What the call without a place returns.
    pub value: T,
    /// A place in each partition that has sessions of the call. The change that the call made is at or before it, and
    /// every later change of these sessions is after it.
    pub places: Vec<Place>,
}

/// The calls that change sessions, which also return the places of their changes. Returned by [`Client::with_place`].
///
/// The methods do what those of [`Client`] with the same names do, and fail in the same way.
#[derive(Clone, Copy, Debug)]
pub struct WithPlace<'a>(&'a Client);

impl Client {
    /// Returns the calls that change sessions and also return the places of their changes in the change log.
    ///
    /// Pass the places to [`Mirror::wait_until`](super::Mirror::wait_until) to read your own write, or compare them
    /// with [`Watch::places`](super::Watch::places).
    #[must_use]
    pub fn with_place(&self) -> WithPlace<'_> {
        WithPlace(self)
    }
}

impl WithPlace<'_> {
    /// Like [`Client::create`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn create(&self, session: SessionKey) -> Result<Placed<bool>, ClientError> {
        self.0.create_with(session, NO_LEASE, true).await
    }

    /// Like [`Client::create_under`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn create_under(&self, session: SessionKey, lease: LeaseId) -> Result<Placed<bool>, ClientError> {
        self.0.create_with(session, lease.number(), true).await
    }

    /// Like [`Client::take`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn take(
        &self,
        session: SessionKey,
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Placed<Taken>, ClientError> {
        self.0.take_with(session, lease, only_from, true).await
    }

    /// Like [`Client::destroy`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn destroy(&self, session: SessionKey) -> Result<Placed<bool>, ClientError> {
        self.0.destroy_with(session, NO_LEASE, true).await
    }

    /// Like [`Client::destroy_under`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn destroy_under(&self, session: SessionKey, lease: LeaseId) -> Result<Placed<bool>, ClientError> {
        self.0.destroy_with(session, lease.number(), true).await
    }

    /// Like [`Client::batch_create`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_create(&self, sessions: &[SessionKey]) -> Result<Placed<Vec<bool>>, ClientError> {
        self.0.batch_create_with(sessions, NO_LEASE, true).await
    }

    /// Like [`Client::batch_create_under`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_create_under(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
    ) -> Result<Placed<Vec<bool>>, ClientError> {
        self.0.batch_create_with(sessions, lease.number(), true).await
    }

    /// Like [`Client::batch_take`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_take(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
        only_from: Option<LeaseId>,
    ) -> Result<Placed<Vec<Claimed>>, ClientError> {
        self.0.batch_take_with(sessions, lease, only_from, true).await
    }

    /// Like [`Client::batch_destroy`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_destroy(&self, sessions: &[SessionKey]) -> Result<Placed<Vec<bool>>, ClientError> {
        self.0.batch_destroy_with(sessions, NO_LEASE, true).await
    }

    /// Like [`Client::batch_destroy_under`].
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_destroy_under(
        &self,
        sessions: &[SessionKey],
        lease: LeaseId,
    ) -> Result<Placed<Vec<bool>>, ClientError> {
        self.0.batch_destroy_with(sessions, lease.number(), true).await
    }
}

/// Replaces earlier places of the same partitions: a long batch takes several calls.
pub(super) fn advance(places: &mut Vec<Place>, newer: Vec<Place>) {
    for place in newer {
        match places.iter_mut().find(|known| known.partition == place.partition) {
            Some(known) => *known = place,
            None => places.push(place),
        }
    }
}
