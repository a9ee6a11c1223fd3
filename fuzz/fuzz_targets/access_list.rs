//! Fuzzes access lists and tokens: a list grants calls only to names that it contains.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use sessiond::access::{AccessList, Credentials, Scope, TokenProof};

fuzz_target!(|input: (&str, &str)| {
    let (text, token) = input;
    let proof = TokenProof::of(token);
    let Ok(list) = text.parse::<AccessList>() else { return };
    let now = SystemTime::UNIX_EPOCH;
    for scope in [None, Some(Scope::Read), Some(Scope::Write), Some(Scope::Observe), Some(Scope::Admin)] {
        assert!(list.authorize(&Credentials::None, scope, now).is_err());
        if let Some(proof) = proof.clone() {
            let name = token.rsplit_once('.').map(|(name, _)| name).unwrap_or_default();
            let granted = list.authorize(&Credentials::Token(proof), scope, now);
            assert!(granted.is_err() || text.contains(name), "{granted:?}");
        }
        let names = Credentials::Certificate([token.to_owned()].into());
        let granted = list.authorize(&names, scope, now);
        assert!(granted.is_err() || text.to_ascii_lowercase().contains(&token.to_ascii_lowercase()), "{granted:?}");
    }
});
