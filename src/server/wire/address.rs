//! The addresses that a server listens on, and their text form.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr};

use tokio::net::lookup_host;

/// A TCP address: an IP address or a host name, and a port. Port 0 picks a free port.
///
/// Convert it from a [`SocketAddr`], or parse it from `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress(String);

/// The address of a gRPC port: a TCP port or a Unix socket.
///
/// Convert it from a [`SocketAddr`], or parse it from `HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddress {
    /// A TCP port.
    Tcp(TcpAddress),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// Why a text is not a listen address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenAddressError {
    /// The text is not a host and a port.
    #[error("write HOST:PORT, such as 0.0.0.0:50051, [::]:50051 or localhost:50051")]
    NoPort,
    /// The text has no path after `unix:`.
    #[error("write unix:PATH, such as unix:/run/sessiond/sessiond.sock")]
    NoPath,
}

impl TcpAddress {
    /// Calls `bind` with each address of the host name, until one succeeds. Returns the last error if none does.
    pub(crate) async fn try_each<T>(&self, mut bind: impl AsyncFnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        for address in lookup_host(&self.0).await? {
            match bind(address).await {
                Ok(bound) => return Ok(bound),
                Err(failure) => error = failure,
            }
        }
        Err(error)
    }
}

impl FromStr for TcpAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |host: &str| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        let is_named = text.rsplit_once(':').is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok());
        if is_named || text.parse::<SocketAddr>().is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ListenAddressError::NoPort)
        }
    }
}

impl From<SocketAddr> for TcpAddress {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(path) = text.strip_prefix("unix:") else { return Ok(Self::Tcp(text.parse()?)) };
        // gRPC libraries accept both `unix:PATH` and `unix://PATH`.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() { Err(ListenAddressError::NoPath) } else { Ok(Self::Unix(path.into())) }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address.into())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_port_or_a_path() {
        for text in ["127.0.0.1:0", "[::1]:50051", "localhost:50051", "sessiond-0.sessiond:1", "0.0.0.0:65535"] {
            let address: ListenAddress = text.parse().unwrap();
            assert!(matches!(address, ListenAddress::Tcp(_)), "{text}");
            assert_eq!(address.to_string(), text);
        }
        for text in ["unix:/run/s.sock", "unix:///run/s.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap(), ListenAddress::Unix("/run/s.sock".into()));
        }
        assert_eq!("unix:s.sock".parse::<ListenAddress>().unwrap().to_string(), "unix:s.sock");
        for text in [
            "",
            "localhost",
            ":50051",
            "localhost:",
            "localhost:65536",
            "::1:50051",
            "http://h:1",
            "u@h:1",
            "unix:",
            "unix://",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn every_address_of_a_host_name_is_tried() {
        let address: TcpAddress = "localhost:50051".parse().unwrap();
        let mut tried = Vec::new();
        let refused = address.try_each(async |address| {
            tried.push(address);
            Err::<(), _>(io::Error::from(io::ErrorKind::AddrInUse))
        });
        assert_eq!(refused.await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(!tried.is_empty() && tried.iter().all(|address| address.ip().is_loopback() && address.port() == 50051));
        assert_eq!(address.try_each(async |address| Ok(address)).await.unwrap(), tried[0]);
    }
}
