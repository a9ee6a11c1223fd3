//! Fuzzes the ids of sessions, auth keys and leases: a parsed id survives being formatted and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessiond::session::{AuthKeyId, LeaseId, SessionId};

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SessionId>() {
        assert_eq!(id.to_string().parse::<SessionId>().ok(), Some(id));
        assert_eq!(text.parse::<AuthKeyId>().ok().map(|key| key.0), Some(id.0), "auth key ids parse like session ids");
    }
    if let Ok(id) = text.parse::<LeaseId>() {
        assert_eq!(id.to_string().parse::<LeaseId>().ok(), Some(id));
    }
});
