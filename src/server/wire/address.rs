//! Where a server listens: the addresses, as they are written.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr};

use tokio::net::lookup_host;

/// A TCP address: an IP address or the name of a host, and a port. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress(String);

/// Where gRPC is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP port.
    Tcp(TcpAddress),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// A text that is no address to listen on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenAddressError {
    /// It names no host and port.
    #[error("write HOST:PORT, such as 0.0.0.0:50051, [::]:50051 or localhost:50051")]
    NoPort,
    /// It names no path.
    #[error("write unix:PATH, such as unix:/run/sessiond/sessiond.sock")]
    NoPath,
}

impl TcpAddress {
    /// Calls `take` with each address that the name stands for, until one can be taken.
    pub(crate) async fn try_each<T>(&self, mut take: impl AsyncFnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in lookup_host(&self.0).await? {
            match take(address).await {
                Ok(taken) => return Ok(taken),
                Err(refused) => error = refused,
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
        // gRPC libraries know both spellings.
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
    fn addresses_are_hosts_with_a_port_or_paths() {
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
    async fn each_address_of_a_name_is_tried() {
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
