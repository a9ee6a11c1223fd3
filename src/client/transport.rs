//! What calls are made over: a connection, and the credentials sent with each call.

use std::{
    fmt,
    fs::{self, Metadata},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{ClientError, resend::Resend};

/// A connection that adds the client's token to every call.
pub(super) type Transport = InterceptedService<Resend, Authorization>;

/// The server to connect to, and the credentials to send.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) authorization: Authorization,
}

impl Target {
    /// Returns a new connection, opened on first use.
    pub(super) fn connect_lazy(&self) -> Transport {
        self.over(self.endpoint.connect_lazy())
    }

    /// Returns a transport over an existing connection.
    pub(super) fn over(&self, channel: Channel) -> Transport {
        InterceptedService::new(Resend(channel), self.authorization.clone())
    }
}

/// The token that is sent with every call, if there is one.
#[derive(Clone, Default)]
pub(super) enum Authorization {
    #[default]
    None,
    Token(Token),
    File(Arc<TokenFile>),
}

pub(super) type Token = MetadataValue<Ascii>;

impl Authorization {
    pub(super) fn bearer(token: &str) -> Result<Self, ClientError> {
        parse(token).map(Self::Token)
    }

    pub(super) fn file(path: PathBuf) -> Result<Self, ClientError> {
        TokenFile::open(path).map(|file| Self::File(Arc::new(file)))
    }

    /// Returns the token that the next call sends.
    pub(super) fn token(&self) -> Option<Token> {
        match self {
            Self::None => None,
            Self::Token(token) => Some(token.clone()),
            Self::File(file) => Some(file.token()),
        }
    }
}

fn parse(token: &str) -> Result<Token, ClientError> {
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value: Token =
        (format!("Bearer {token}").parse().ok()).filter(|_| is_token).ok_or(ClientError::InvalidToken)?;
    // Keeps the token out of logs and of HPACK's dynamic tables along the way.
    value.set_sensitive(true);
    Ok(value)
}

/// File systems may give two changes within this time the same timestamp.
const TIMESTAMP_RESOLUTION: Duration = Duration::from_millis(20);

/// A token in a file that is read again when it changes.
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<LastRead>,
}

/// What the file held when it was last read.
struct LastRead {
    token: Token,
    found: Metadata,
    /// Whether a later change is certain to have another timestamp.
    is_settled: bool,
}

impl LastRead {
    /// `found` was read before the token.
    fn new(token: Token, found: Metadata) -> Self {
        let age = found.modified().ok().and_then(|modified| modified.elapsed().ok());
        Self { token, found, is_settled: age.is_some_and(|age| age > TIMESTAMP_RESOLUTION) }
    }
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<Self, ClientError> {
        let unreadable =
            |error: io::Error| ClientError::InvalidTokenFile { path: path.clone(), reason: error.to_string() };
        let found = fs::metadata(&path).map_err(unreadable)?;
        let token = parse(fs::read_to_string(&path).map_err(unreadable)?.trim())?;
        Ok(Self { path, last: Mutex::new(LastRead::new(token, found)) })
    }

    /// Returns the token. Looks at the file each time, which takes about a microsecond.
    fn token(&self) -> Token {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = fs::metadata(&self.path)
            && !(last.is_settled && is_same(&found, &last.found))
            && let Ok(text) = fs::read_to_string(&self.path)
            && let Ok(token) = parse(text.trim())
        {
            *last = LastRead::new(token, found);
        }
        last.token.clone()
    }
}

/// Returns whether a file has probably not changed between two looks.
fn is_same(now: &Metadata, before: &Metadata) -> bool {
    now.len() == before.len() && now.modified().ok() == before.modified().ok()
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.token() {
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Token(_) => f.write_str("Bearer ***"),
            Self::File(file) => write!(f, "Bearer *** from {:?}", file.path),
        }
    }
}
