//! The methods of the package `sessiond.v1`.

use std::sync::LazyLock;

use http::Uri;

use crate::access::Scope;

/// A method, as its index in the table. The server looks up each request's path once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method(usize);

/// The path of each method, and the scope that its callers need.
const TABLE: [(&str, Scope); Method::COUNT] = [
    ("/sessiond.v1.SessionService/HasSession", Scope::Read),
    ("/sessiond.v1.SessionService/LookupSession", Scope::Read),
    ("/sessiond.v1.SessionService/CreateSession", Scope::Write),
    ("/sessiond.v1.SessionService/DestroySession", Scope::Write),
    ("/sessiond.v1.SessionService/BatchHasSessions", Scope::Read),
    ("/sessiond.v1.SessionService/BatchLookupSessions", Scope::Read),
    ("/sessiond.v1.SessionService/BatchCreateSessions", Scope::Write),
    ("/sessiond.v1.SessionService/BatchDestroySessions", Scope::Write),
    ("/sessiond.v1.SessionService/Subscribe", Scope::Observe),
    ("/sessiond.v1.LeaseService/GrantLease", Scope::Write),
    ("/sessiond.v1.LeaseService/KeepLeaseAlive", Scope::Write),
    ("/sessiond.v1.LeaseService/RevokeLease", Scope::Write),
    ("/sessiond.v1.LeaseService/ListLeases", Scope::Read),
];

static URIS: LazyLock<[Uri; Method::COUNT]> = LazyLock::new(|| TABLE.map(|(path, _)| Uri::from_static(path)));

impl Method {
    pub(crate) const COUNT: usize = 13;
    pub(crate) const SUBSCRIBE: Self = Self(8);
    pub(crate) const KEEP_LEASE_ALIVE: Self = Self(10);

    /// Returns the method with this path.
    pub(crate) fn of(path: &str) -> Option<Self> {
        TABLE.iter().position(|(known, _)| *known == path).map(Self)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// The full name, such as `sessiond.v1.SessionService/HasSession`.
    pub(crate) fn name(self) -> &'static str {
        &TABLE[self.0].0[1..]
    }

    /// The names of the service and of the method within it.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        self.name().split_once('/').unwrap_or_default()
    }

    pub(crate) fn scope(self) -> Scope {
        TABLE[self.0].1
    }

    /// Whether the method answers with a single message.
    pub(crate) fn is_unary(self) -> bool {
        self != Self::SUBSCRIBE
    }

    /// Whether the method belongs to the lease service.
    pub(super) fn is_about_leases(self) -> bool {
        self.0 > Self::SUBSCRIBE.0
    }

    /// The URI for a request to the generated service. Cloning it does not allocate.
    pub(super) fn uri(self) -> Uri {
        URIS[self.0].clone()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn table_matches_the_descriptor() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut count = 0;
        for file in set.file.iter().filter(|file| file.package() == "sessiond.v1") {
            for service in &file.service {
                for descriptor in &service.method {
                    let path = format!("/sessiond.v1.{}/{}", service.name(), descriptor.name());
                    let method = Method::of(&path).expect(&path);
                    assert_eq!(method.is_unary(), !descriptor.server_streaming(), "{path}");
                    assert_eq!(method.is_about_leases(), service.name() == "LeaseService", "{path}");
                    count += 1;
                }
            }
        }
        assert_eq!(count, Method::COUNT);
        assert_eq!(Method::KEEP_LEASE_ALIVE.names(), ("sessiond.v1.LeaseService", "KeepLeaseAlive"));
        assert_eq!(Method::of("/sessiond.v1.SessionService/Nonsense"), None);
    }
}
