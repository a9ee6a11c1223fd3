//! The access list: which tokens and certificates may make which calls.

use std::{collections::HashMap, time::SystemTime};

use super::{
    Credentials, ParseScopesError, Refusal, Scope, Scopes, TokenProof,
    token::{TokenHash, is_name},
};

/// The tokens and certificates that may make calls, and the scopes of each.
///
/// Its text has one entry per line. `#` starts a comment:
///
/// ```text
/// token gateway-1 read,write sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
/// token dashboard observe sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9 until=2027-01-01T00:00:00Z
/// certificate spiffe://fleet.example/gateway read,write
/// certificate dashboard.example observe
/// ```
///
/// The hash of a token covers the whole token, including its name. Several tokens may have the same name, so that a
/// token can be replaced without downtime. A certificate is identified by a subject alternative name: a URI, which is
/// case-sensitive, or a DNS name, which is not. A certificate with several listed names has the scopes of all of them.
/// An entry with `until` expires at that time (RFC 3339, in UTC).
#[derive(Debug, Default)]
pub struct AccessList {
    tokens: HashMap<String, Vec<Token>>,
    certificates: HashMap<String, Vec<Entry>>,
}

#[derive(Debug)]
struct Token {
    hash: TokenHash,
    entry: Entry,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    scopes: Scopes,
    until: Option<SystemTime>,
}

impl Entry {
    fn has_expired(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The permission to make a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// The caller: the name of a token or of a certificate.
    pub name: String,
    /// When the permission expires. `None` for never.
    pub until: Option<SystemTime>,
}

/// The error for text that is not an access list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
#[non_exhaustive]
pub struct AccessListError {
    /// The line number, from 1.
    pub line: usize,
    /// What is wrong, and how to fix it.
    pub reason: String,
}

impl std::str::FromStr for AccessList {
    type Err = AccessListError;

    fn from_str(text: &str) -> Result<Self, AccessListError> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            list.add(line).map_err(|reason| AccessListError { line: index + 1, reason })?;
        }
        Ok(list)
    }
}

fn scopes(text: &str) -> Result<Scopes, String> {
    text.parse().map_err(|error: ParseScopesError| error.to_string())
}

impl AccessList {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next() else { return Ok(()) };
        let mut word = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
        match kind {
            "token" => {
                let name = word("the name")?;
                if !is_name(name) {
                    return Err(format!("{name:?} is not a token name: make one with `sessiond token new`"));
                }
                let scopes = scopes(word("the list of scopes")?)?;
                let hash = TokenHash::parse(word("the hash")?)
                    .ok_or("the hash is not sha256: and 64 hexadecimal digits: make one with `sessiond token new`")?;
                let entry = Entry { scopes, until: until(words)? };
                self.tokens.entry(name.to_owned()).or_default().push(Token { hash, entry });
            }
            "certificate" => {
                let name = comparable(word("the name")?);
                let scopes = scopes(word("the list of scopes")?)?;
                let entry = Entry { scopes, until: until(words)? };
                self.certificates.entry(name).or_default().push(entry);
            }
            _ => return Err(format!("{kind:?} is not a kind of entry: use token or certificate")),
        }
        Ok(())
    }

    /// Checks whether a caller with these credentials may make a call that requires `scope`. If `scope` is `None`, any
    /// caller on the list may make the call. Entries that have expired at `now` do not count.
    ///
    /// # Errors
    ///
    /// Returns a [`Refusal`] if the caller may not make the call.
    pub fn authorize(
        &self,
        credentials: &Credentials,
        scope: Option<Scope>,
        now: SystemTime,
    ) -> Result<Granted, Refusal> {
        let (name, entry) = match credentials {
            Credentials::None => return Err(Refusal::NoCredentials),
            Credentials::Token(proof) => (proof.name.clone(), self.token(proof, now)?),
            Credentials::Certificate(names) => self.certificate(names, now)?,
        };
        match scope.filter(|scope| !entry.scopes.allow(*scope)) {
            Some(takes) => Err(Refusal::ScopeMissing { name, has: entry.scopes, takes }),
            None => Ok(Granted { name, until: entry.until }),
        }
    }

    fn token(&self, proof: &TokenProof, now: SystemTime) -> Result<Entry, Refusal> {
        // Compares with every token of this name, so that the time taken reveals nothing about the secrets. Whether a
        // name exists is not secret.
        let tokens = self.tokens.get(&proof.name).map(Vec::as_slice).unwrap_or_default();
        let found =
            tokens.iter().fold(None, |found, token| if token.hash.is(&proof.hash) { Some(token) } else { found });
        let token = found.ok_or(Refusal::UnknownToken)?;
        if token.entry.has_expired(now) {
            return Err(Refusal::ExpiredToken { name: proof.name.clone() });
        }
        Ok(token.entry)
    }

    fn certificate(&self, names: &[String], now: SystemTime) -> Result<(String, Entry), Refusal> {
        let mut found: Option<(String, Entry)> = None;
        for name in names {
            let entries = self.certificates.get(&comparable(name)).into_iter().flatten();
            for entry in entries.filter(|entry| !entry.has_expired(now)) {
                let (_, all) = found.get_or_insert_with(|| (name.clone(), *entry));
                all.scopes = all.scopes.union(entry.scopes);
                // The permission ends when the first entry expires. The caller is then checked again.
                all.until = [all.until, entry.until].into_iter().flatten().min();
            }
        }
        found.ok_or_else(|| Refusal::UnknownCertificate { names: names.to_vec() })
    }
}

/// Returns a certificate's name in the form used for comparison. URIs are case-sensitive. DNS names are not, and
/// contain no colon.
fn comparable(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { name.to_ascii_lowercase() }
}

fn until<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Option<SystemTime>, String> {
    let until = match words.next() {
        None => None,
        Some(word) => {
            let time = word
                .strip_prefix("until=")
                .ok_or_else(|| format!("{word:?} is unexpected here: only until=TIME may follow"))?;
            let time = humantime::parse_rfc3339(time);
            Some(time.map_err(|_| format!("{word:?} is not a time: use the form until=2027-01-01T00:00:00Z"))?)
        }
    };
    match words.next() {
        None => Ok(until),
        Some(word) => Err(format!("{word:?} is unexpected at the end of the line: remove it")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::access::NewToken;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn proof(token: &NewToken) -> Credentials {
        Credentials::Token(TokenProof::of(token.token()).expect("a token"))
    }

    fn line(token: &NewToken, scopes: &str) -> String {
        token.line(scopes.parse().unwrap())
    }

    #[test]
    fn token_is_authorized_by_its_line() {
        let (token, other) = (NewToken::generate("gate.way-1").unwrap(), NewToken::generate("gate.way-1").unwrap());
        let list: AccessList = line(&token, "read,observe").parse().unwrap();
        let granted = list.authorize(&proof(&token), Some(Scope::Read), NOW).unwrap();
        assert_eq!(granted, Granted { name: "gate.way-1".to_owned(), until: None });
        assert!(list.authorize(&proof(&token), None, NOW).is_ok());
        let refusal = list.authorize(&proof(&token), Some(Scope::Write), NOW).unwrap_err();
        assert!(matches!(refusal, Refusal::ScopeMissing { takes: Scope::Write, .. }));
        assert_eq!(list.authorize(&proof(&other), None, NOW), Err(Refusal::UnknownToken));
        assert_eq!(list.authorize(&Credentials::None, None, NOW), Err(Refusal::NoCredentials));
        // Both tokens are valid while one replaces the other.
        let both: AccessList = format!("{}\n{}", line(&token, "read"), line(&other, "write")).parse().unwrap();
        assert!(both.authorize(&proof(&token), Some(Scope::Read), NOW).is_ok());
        assert!(both.authorize(&proof(&other), Some(Scope::Write), NOW).is_ok());
        assert!(both.authorize(&proof(&other), Some(Scope::Read), NOW).is_err());
    }

    #[test]
    fn certificate_has_the_scopes_of_all_its_names() {
        let list = "certificate spiffe://fleet/gateway read # of all gateways\ncertificate GATEWAY.example write";
        let list: AccessList = list.parse().unwrap();
        let certificate = |names: &[&str]| Credentials::Certificate(names.iter().map(|n| (*n).to_owned()).collect());
        let both = certificate(&["other", "spiffe://fleet/gateway", "gateway.Example"]);
        assert!(list.authorize(&both, Some(Scope::Read), NOW).is_ok());
        assert_eq!(list.authorize(&both, Some(Scope::Write), NOW).unwrap().name, "spiffe://fleet/gateway");
        assert!(list.authorize(&both, Some(Scope::Observe), NOW).is_err());
        let names = vec!["other".to_owned()];
        let refusal = list.authorize(&certificate(&["other"]), None, NOW);
        assert_eq!(refusal, Err(Refusal::UnknownCertificate { names }));
    }

    #[test]
    fn certificate_uris_are_case_sensitive_and_dns_names_are_not() {
        let list: AccessList =
            "certificate spiffe://fleet/Gateway read\ncertificate GATEWAY.example write".parse().unwrap();
        let may = |name: &str, scope| {
            list.authorize(&Credentials::Certificate([name.to_owned()].into()), Some(scope), NOW).is_ok()
        };
        assert!(may("spiffe://fleet/Gateway", Scope::Read));
        assert!(!may("spiffe://fleet/gateway", Scope::Read) && !may("spiffe://fleet/GATEWAY", Scope::Read));
        assert!(may("gateway.EXAMPLE", Scope::Write));
    }

    #[test]
    fn entries_expire_at_their_until_time() {
        let token = NewToken::generate("t").unwrap();
        let text = format!(
            "{} until=1970-01-01T00:01:00Z\ncertificate c read until=1970-01-01T00:01:00Z",
            line(&token, "read")
        );
        let list: AccessList = text.parse().unwrap();
        let certificate = Credentials::Certificate(["c".to_owned()].into());
        let until = NOW + Duration::from_secs(60);
        for credentials in [proof(&token), certificate] {
            assert_eq!(list.authorize(&credentials, Some(Scope::Read), NOW).unwrap().until, Some(until));
            assert!(list.authorize(&credentials, Some(Scope::Read), until).is_err());
        }
    }

    #[test]
    fn errors_name_the_line_and_the_problem() {
        let hash = "0".repeat(64);
        let table = [
            ("tokne a read", "is not a kind of entry"),
            ("token", "the name is missing"),
            ("token a/b read", "is not a token name"),
            ("token a", "the list of scopes is missing"),
            ("token a raed", "is not a scope"),
            ("token a read", "the hash is missing"),
            ("token a read sha256:0", "64 hexadecimal digits"),
            (&format!("token a read sha256:{}é", &hash[2..]), "64 hexadecimal digits"),
            (&format!("token a read sha256:{hash} 2027-01-01T00:00:00Z"), "only until=TIME"),
            (&format!("token a read sha256:{hash} until=soon"), "is not a time"),
            ("certificate c read until=2027-01-01T00:00:00Z more", "is unexpected"),
        ];
        for (text, says) in table {
            let error = format!("# a comment\n\n{text}").parse::<AccessList>().unwrap_err();
            assert_eq!(error.line, 3);
            assert!(error.reason.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn malformed_tokens_and_names_are_rejected() {
        for text in ["", ".", "a", ".a", "a b.c", &format!("{}.x", "a".repeat(65)), "é.x"] {
            assert!(TokenProof::of(text).is_none(), "{text}");
        }
        assert!(NewToken::generate("a b").unwrap_err().to_string().contains("is not a token name"));
        let token = NewToken::generate("secret").unwrap();
        assert!(!format!("{token:?} {:?}", proof(&token)).contains(&token.token()[7..]));
    }
}
