//! The list of those who may call.

use std::{collections::HashMap, time::SystemTime};

use super::{
    Credentials, Refusal, Scope, Scopes, TokenProof,
    token::{TokenHash, is_name},
};

/// Those who may call, and what each may do.
///
/// It is written as text, an entry a line; what follows a `#` is a comment:
///
/// ```text
/// token gateway-1 read,write sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
/// token dashboard observe sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9 until=2027-01-01T00:00:00Z
/// certificate spiffe://fleet.example/gateway read,write
/// certificate dashboard.example observe
/// ```
///
/// A token's hash is that of all that is sent. Tokens of one name may stand side by side, so that one can be replaced in
/// peace. A certificate is named by a subject alternative name of type URI, compared with case, or DNS, without; one with
/// several names has the scopes of all. With `until` an entry ends at that time (RFC 3339, in UTC).
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

/// That a call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Who calls: the name of a token or of a certificate.
    pub name: String,
    /// When it may no longer be made.
    pub until: Option<SystemTime>,
}

/// Why a text is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct AccessListError {
    /// The number of the line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
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

impl AccessList {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next() else { return Ok(()) };
        let mut word = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
        match kind {
            "token" => {
                let name = word("the name")?;
                if !is_name(name) {
                    return Err(format!("{name:?} is no name of a token: make one by `sessiond token new`"));
                }
                let scopes = word("the list of scopes")?.parse()?;
                let hash = TokenHash::parse(word("the hash")?)
                    .ok_or("the hash is not sha256: and 64 hexadecimal digits: make one by `sessiond token new`")?;
                let entry = Entry { scopes, until: until(words)? };
                self.tokens.entry(name.to_owned()).or_default().push(Token { hash, entry });
            }
            "certificate" => {
                let name = comparable(word("the name")?);
                let scopes = word("the list of scopes")?.parse()?;
                let entry = Entry { scopes, until: until(words)? };
                self.certificates.entry(name).or_default().push(entry);
            }
            _ => return Err(format!("{kind:?} is no kind of entry: write token or certificate")),
        }
        Ok(())
    }

    /// Tells whether who has shown `credentials` may make a call that takes `scope`, or one that takes none but is not for
    /// strangers.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when not.
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
        // All of one name are looked at, so that the time tells nothing. That there is a name is no secret.
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
                // When the first of them ends, what is left is looked up again.
                all.until = [all.until, entry.until].into_iter().flatten().min();
            }
        }
        found.ok_or_else(|| Refusal::UnknownCertificate { names: names.to_vec() })
    }
}

/// Returns the form in which the names of certificates are compared. Case counts in URIs, and not in DNS names, which have no
/// colon.
fn comparable(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { name.to_ascii_lowercase() }
}

fn until<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Option<SystemTime>, String> {
    let until = match words.next() {
        None => None,
        Some(word) => {
            let time = word.strip_prefix("until=").ok_or_else(|| format!("{word:?} is too much: write until=TIME"))?;
            let time = humantime::parse_rfc3339(time);
            Some(time.map_err(|_| format!("{word:?} is no time: write until=2027-01-01T00:00:00Z"))?)
        }
    };
    match words.next() {
        None => Ok(until),
        Some(word) => Err(format!("{word:?} is too much")),
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
    fn a_token_is_known_by_its_line() {
        let (token, other) = (NewToken::generate("gate.way-1").unwrap(), NewToken::generate("gate.way-1").unwrap());
        let list: AccessList = line(&token, "read,observe").parse().unwrap();
        let granted = list.authorize(&proof(&token), Some(Scope::Read), NOW).unwrap();
        assert_eq!(granted, Granted { name: "gate.way-1".to_owned(), until: None });
        assert!(list.authorize(&proof(&token), None, NOW).is_ok());
        let refusal = list.authorize(&proof(&token), Some(Scope::Write), NOW).unwrap_err();
        assert!(matches!(refusal, Refusal::ScopeMissing { takes: Scope::Write, .. }));
        assert_eq!(list.authorize(&proof(&other), None, NOW), Err(Refusal::UnknownToken));
        assert_eq!(list.authorize(&Credentials::None, None, NOW), Err(Refusal::NoCredentials));
        // Both are known while one takes the place of the other.
        let both: AccessList = format!("{}\n{}", line(&token, "read"), line(&other, "write")).parse().unwrap();
        assert!(both.authorize(&proof(&token), Some(Scope::Read), NOW).is_ok());
        assert!(both.authorize(&proof(&other), Some(Scope::Write), NOW).is_ok());
        assert!(both.authorize(&proof(&other), Some(Scope::Read), NOW).is_err());
    }

    #[test]
    fn a_certificate_has_the_scopes_of_all_its_names() {
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
    fn uris_of_certificates_are_compared_with_case_and_dns_names_without() {
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
    fn entries_end_when_they_say_so() {
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
    fn what_is_wrong_is_told_with_its_line() {
        let hash = "0".repeat(64);
        let table = [
            ("tokne a read", "is no kind of entry"),
            ("token", "the name is missing"),
            ("token a/b read", "is no name of a token"),
            ("token a", "the list of scopes is missing"),
            ("token a raed", "is no scope"),
            ("token a read", "the hash is missing"),
            ("token a read sha256:0", "64 hexadecimal digits"),
            (&format!("token a read sha256:{}é", &hash[2..]), "64 hexadecimal digits"),
            (&format!("token a read sha256:{hash} 2027-01-01T00:00:00Z"), "write until=TIME"),
            (&format!("token a read sha256:{hash} until=soon"), "is no time"),
            ("certificate c read until=2027-01-01T00:00:00Z more", "is too much"),
        ];
        for (text, says) in table {
            let error = format!("# a comment\n\n{text}").parse::<AccessList>().unwrap_err();
            assert_eq!(error.line, 3);
            assert!(error.reason.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        for text in ["", ".", "a", ".a", "a b.c", &format!("{}.x", "a".repeat(65)), "é.x"] {
            assert!(TokenProof::of(text).is_none(), "{text}");
        }
        assert!(NewToken::generate("a b").unwrap_err().to_string().contains("is no name"));
        let token = NewToken::generate("secret").unwrap();
        assert!(!format!("{token:?} {:?}", proof(&token)).contains(&token.token()[7..]));
    }
}
