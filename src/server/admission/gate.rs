//! Checks the credentials, the scope and the rate of each call.

use std::{future::Future, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use http::{Request, header::AUTHORIZATION};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::rate_limit::{Caller, RateLimiter};
use crate::{
    access::{AccessList, Credentials, Refusal, Scope, TokenProof},
    service::{Method, ServiceError},
};

/// The maximum time between two checks whether a token has expired. The expiry is a wall-clock time, and somebody may
/// change the wall clock.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The client at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The subject alternative names of its certificate, if it presented one.
    pub(crate) certificate: Option<Arc<[String]>>,
}

/// Admits or refuses calls.
pub(crate) struct Gate {
    /// The access list. If `None`, every client may make every call.
    pub(crate) access: Option<watch::Receiver<Arc<AccessList>>>,
    pub(crate) rate: Option<RateLimiter>,
}

/// Completes with the reason when the permission for an open stream is withdrawn.
pub(crate) type Withdrawn = Pin<Box<dyn Future<Output = ServiceError> + Send>>;

/// What a call requires of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requires {
    Nothing,
    /// Any valid credentials.
    Credentials,
    Scope(Scope),
}

impl Gate {
    /// Returns a gate, or `None` if there is nothing to check.
    pub(crate) fn new(access: Option<watch::Receiver<Arc<AccessList>>>, rate: Option<RateLimiter>) -> Option<Self> {
        (access.is_some() || rate.is_some()).then_some(Self { access, rate })
    }

    /// Admits a call or returns why it is refused. For a stream that an access list permits, also returns a future that
    /// completes when the permission is withdrawn.
    pub(crate) fn admit<B>(
        &self,
        peer: &Peer,
        method: Option<Method>,
        request: &Request<B>,
    ) -> Result<Option<Withdrawn>, ServiceError> {
        // Health probes need no credentials and are not counted: an orchestrator must not kill a server because of its
        // clients.
        let scope = match requirement(method, request.uri().path()) {
            Requires::Nothing => return Ok(None),
            Requires::Credentials => None,
            Requires::Scope(scope) => Some(scope),
        };
        let Some(access) = &self.access else {
            self.count(method, Caller::of(peer))?;
            return Ok(None);
        };
        let credentials = credentials(peer, request);
        let granted = match credentials.as_ref() {
            Ok(credentials) => access.borrow().authorize(credentials, scope, std::time::SystemTime::now()),
            Err(refusal) => Err(refusal.clone()),
        };
        match granted {
            Ok(granted) => self.count(method, Caller::Named(&granted.name))?,
            Err(refusal) => {
                // Failed attempts count for every call, even KeepLeaseAlive, to slow down clients that guess tokens.
                self.count(None, Caller::Address(peer.address))?;
                return Err(refusal.into());
            }
        }
        let is_stream = matches!(scope, Some(Scope::Observe | Scope::Admin));
        Ok(credentials.ok().filter(|_| is_stream).map(|credentials| {
            let withdrawn: Withdrawn = Box::pin(withdrawn(access.clone(), credentials, scope));
            withdrawn
        }))
    }

    fn count(&self, method: Option<Method>, caller: Caller<'_>) -> Result<(), ServiceError> {
        // A gateway that makes too many other calls must not lose its sessions. The subject answers keep-alives that
        // repeat too soon from memory.
        let is_counted = method != Some(Method::KEEP_LEASE_ALIVE);
        let Some(rate) = self.rate.as_ref().filter(|_| is_counted) else { return Ok(()) };
        rate.count(caller, Instant::now()).map_err(|retry_after| ServiceError::RateLimited { retry_after })
    }
}

/// Returns what a call requires.
fn requirement(method: Option<Method>, path: &str) -> Requires {
    if let Some(method) = method {
        Requires::Scope(method.scope())
    } else if path.starts_with("/grpc.health.v1.") {
        Requires::Nothing
    } else if path.starts_with("/grpc.reflection.") {
        Requires::Scope(Scope::Admin)
    } else {
        Requires::Credentials
    }
}

/// Returns the credentials of a call. A token takes precedence over the connection's certificate, so that one
/// connection can carry the calls of many clients.
fn credentials<B>(peer: &Peer, request: &Request<B>) -> Result<Credentials, Refusal> {
    if let Some(value) = request.headers().get(AUTHORIZATION) {
        let proof = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| TokenProof::of(token.trim()))?
        });
        return proof.map(Credentials::Token).ok_or(Refusal::UnknownToken);
    }
    Ok(peer.certificate.clone().map_or(Credentials::None, Credentials::Certificate))
}

/// Waits until the access list no longer permits a call with `credentials`, and returns the refusal.
async fn withdrawn(
    mut access: watch::Receiver<Arc<AccessList>>,
    credentials: Credentials,
    scope: Option<Scope>,
) -> ServiceError {
    loop {
        let now = std::time::SystemTime::now();
        let granted = access.borrow_and_update().authorize(&credentials, scope, now);
        let until = match granted {
            Ok(granted) => granted.until,
            Err(refusal) => return refusal.into(),
        };
        let ends = async {
            match until {
                Some(until) => sleep(until.duration_since(now).unwrap_or_default().min(LONGEST_WAIT)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = access.changed() => if changed.is_err() {
                // The server has stopped, and ends its streams anyway.
                std::future::pending::<()>().await;
            },
            () = ends => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_require_credentials_and_probes_nothing() {
        let requirement = |path| super::requirement(Method::of(path), path);
        assert_eq!(requirement("/sessiond.v1.SessionService/HasSession"), Requires::Scope(Scope::Read));
        assert_eq!(requirement("/grpc.health.v1.Health/Check"), Requires::Nothing);
        assert_eq!(requirement("/sessiond.v1.SessionService/Nonsense"), Requires::Credentials);
        assert_eq!(requirement("/"), Requires::Credentials);
    }
}
