//! Who may come in: what a call takes, who calls, and how often one may.

use std::{future::Future, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use http::{Request, header::AUTHORIZATION};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::rate_limit::{Caller, RateLimiter};
use crate::{
    access::{AccessList, Credentials, Refusal, Scope, TokenProof},
    service,
    service::ServiceError,
};

/// The clock may be set: how long one waits at the most for a time that is told by it.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// It is not counted: a gateway that makes too many other calls must not lose its sessions. The subject answers one that
/// repeats too soon from memory.
const KEEP_LEASE_ALIVE: &str = "/sessiond.v1.LeaseService/KeepLeaseAlive";

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The subject alternative names of its certificate, where it had to show one.
    pub(crate) certificate: Option<Arc<[String]>>,
}

/// Lets calls in, or does not.
pub(crate) struct Gate {
    /// Where there is none, everybody may do everything.
    pub(crate) access: Option<watch::Receiver<Arc<AccessList>>>,
    pub(crate) rate: Option<RateLimiter>,
}

/// Ready when what was granted is withdrawn, with the reason.
pub(crate) type Withdrawn = Pin<Box<dyn Future<Output = ServiceError> + Send>>;

/// What a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// To be anybody that is known.
    Credentials,
    Scope(Scope),
}

impl Gate {
    /// A gate, where there is anything to keep out.
    pub(crate) fn new(access: Option<watch::Receiver<Arc<AccessList>>>, rate: Option<RateLimiter>) -> Option<Self> {
        (access.is_some() || rate.is_some()).then_some(Self { access, rate })
    }

    /// Lets a call in. Gives what a stream ends with, where that can come.
    pub(crate) fn admit<B>(&self, peer: &Peer, request: &Request<B>) -> Result<Option<Withdrawn>, ServiceError> {
        let path = request.uri().path();
        let takes = takes(path);
        // Probes are neither asked who they are nor counted: an orchestrator must not end a server because of its clients.
        let scope = match takes {
            Takes::Nothing => return Ok(None),
            Takes::Credentials => None,
            Takes::Scope(scope) => Some(scope),
        };
        let Some(access) = &self.access else {
            self.count(path, Caller::of(peer))?;
            return Ok(None);
        };
        let credentials = credentials(peer, request);
        let granted = match credentials.as_ref() {
            Ok(credentials) => access.borrow().authorize(credentials, scope, std::time::SystemTime::now()),
            Err(refusal) => Err(refusal.clone()),
        };
        match granted {
            Ok(granted) => self.count(path, Caller::Named(&granted.name))?,
            Err(refusal) => {
                // Whoever guesses tokens is slowed down, whatever the call.
                self.count("", Caller::Address(peer.address))?;
                return Err(refusal.into());
            }
        }
        let is_stream = matches!(scope, Some(Scope::Observe | Scope::Admin));
        Ok(credentials.ok().filter(|_| is_stream).map(|credentials| {
            let withdrawn: Withdrawn = Box::pin(withdrawn(access.clone(), credentials, scope));
            withdrawn
        }))
    }

    fn count(&self, path: &str, caller: Caller<'_>) -> Result<(), ServiceError> {
        let Some(rate) = self.rate.as_ref().filter(|_| path != KEEP_LEASE_ALIVE) else { return Ok(()) };
        rate.count(caller, Instant::now()).map_err(|retry_after| ServiceError::RateLimited { retry_after })
    }
}

/// What a call to this path takes.
fn takes(path: &str) -> Takes {
    if let Some(method) = path.strip_prefix(service::PATH) {
        return match method {
            "SessionService/HasSession"
            | "SessionService/LookupSession"
            | "SessionService/BatchHasSessions"
            | "SessionService/BatchLookupSessions"
            | "LeaseService/ListLeases" => Takes::Scope(Scope::Read),
            "SessionService/Subscribe" => Takes::Scope(Scope::Observe),
            "SessionService/CreateSession"
            | "SessionService/DestroySession"
            | "SessionService/BatchCreateSessions"
            | "SessionService/BatchDestroySessions"
            | "LeaseService/GrantLease"
            | "LeaseService/KeepLeaseAlive"
            | "LeaseService/RevokeLease" => Takes::Scope(Scope::Write),
            _ => Takes::Credentials,
        };
    }
    if path.starts_with("/grpc.health.v1.") {
        Takes::Nothing
    } else if path.starts_with("/grpc.reflection.") {
        Takes::Scope(Scope::Admin)
    } else {
        Takes::Credentials
    }
}

/// Who calls: a token goes before the certificate of the connection, so that one connection can carry calls of many.
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

/// Waits until the list says no to what it said yes to.
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
                // The server is gone, and ends its streams by itself.
                std::future::pending::<()>().await;
            },
            () = ends => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_that_there_is_takes_a_scope() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = 0;
        for file in set.file.iter().filter(|file| file.package() == "sessiond.v1") {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/sessiond.v1.{}/{}", service.name(), method.name());
                    assert!(matches!(takes(&path), Takes::Scope(_)), "{path}");
                    methods += 1;
                }
            }
        }
        assert_eq!(methods, 12);
        assert_eq!(takes("/grpc.health.v1.Health/Check"), Takes::Nothing);
        assert_eq!(takes("/sessiond.v1.SessionService/Nonsense"), Takes::Credentials);
        assert_eq!(takes("/"), Takes::Credentials);
    }
}
