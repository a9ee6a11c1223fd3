//! TCP and Unix sockets: binding, listening, accepting and reading.

use std::{
    fs::{self, Permissions},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdTcpStream},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream},
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::address::ListenAddress;

/// The maximum number of connections that wait to be accepted, the same as `TcpListener::bind` uses.
const BACKLOG: u32 = 1024;

/// The mode of a Unix socket: its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// How long to wait for another server's socket to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// An address that is reserved, but on which the server does not listen yet.
pub(crate) enum Taken {
    /// A bound socket.
    Tcp(TcpSocket),
    /// A checked path. The socket is created only when the server listens: another server would take a socket without a
    /// listener for a stale one.
    Unix(PathBuf),
}

impl Taken {
    pub(crate) async fn new(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => Ok(Self::Tcp(address.try_each(async |address| bind(address)).await?)),
            ListenAddress::Unix(path) => {
                find_stale(path).await?;
                Ok(Self::Unix(path.clone()))
            }
        }
    }

    pub(crate) async fn listen(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(socket) => Ok(Listener::Tcp(socket.listen(BACKLOG)?)),
            Self::Unix(path) => {
                if find_stale(&path).await? {
                    fs::remove_file(&path)?;
                }
                let socket = UnixSocket::new_stream()?;
                socket.bind(&path)?;
                let file = SocketFile::new(path)?;
                // No client can connect before `listen`, so the permissions are set in time.
                fs::set_permissions(&file.path, Permissions::from_mode(SOCKET_MODE))?;
                Ok(Listener::Unix(socket.listen(BACKLOG)?, file))
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier server may still be closing on this port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Returns whether `path` is a stale socket that an earlier server left behind.
///
/// # Errors
///
/// Fails if another server listens on the socket, or if the path is not a socket.
async fn find_stale(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        Ok(_) => {}
    }
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens on this socket")),
    }
}

/// The file of a Unix socket. It is removed on drop.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The device and the inode of the file.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If another server has replaced the file, it stays.
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the Unix socket");
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Returns the address. If the configured port was 0, it has the actual one.
    pub(crate) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => Ok(listener.local_addr()?.into()),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    /// Returns the address of a TCP listener, or `Unsupported` for a Unix socket.
    pub(crate) fn tcp_address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Unix(..) => Err(io::Error::new(io::ErrorKind::Unsupported, "the server listens on a Unix socket")),
        }
    }

    /// Waits for a connection and returns it with its peer's address, which is 127.0.0.1 for a Unix socket.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, IpAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream), peer.ip()))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Unix(stream), Ipv4Addr::LOCALHOST.into()))
            }
        }
    }
}

/// An accepted connection, registered with the acceptor's runtime.
pub(crate) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepted {
    /// Deregisters the connection from that runtime.
    pub(super) fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                Ok(Detached::Tcp(stream.into_std()?))
            }
            Self::Unix(stream) => Ok(Detached::Unix(stream.into_std()?)),
        }
    }
}

/// A connection that is registered with no runtime.
pub(crate) enum Detached {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Detached {
    /// Registers the connection with the current runtime.
    pub(super) fn attach(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream).map(Stream::Unix),
        }
    }
}

/// A connection, registered with the runtime of its worker.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Waits for the first bytes without consuming them. Only TCP supports this, which suffices: TLS over a Unix socket
    /// is refused with [`ServerError::TlsOverUnix`](crate::server::ServerError::TlsOverUnix).
    pub(super) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(bytes).await,
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A connection that can tell whether its socket accepts data.
pub(super) trait Socket {
    /// Waits until the socket accepts data, as far as is known: it may have become full again.
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Socket for Stream {
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
        }
    }
}

impl Socket for Box<TlsStream<Stream>> {
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_ref().0.poll_writable(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
