//! The addresses of storages: one that is read is written so that it is read alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessiond::storage::StorageUrl;

fuzz_target!(|text: &str| {
    if let Ok(url) = text.parse::<StorageUrl>() {
        let written = url.to_string();
        let again: StorageUrl = written.parse().expect("what it writes it reads");
        assert_eq!(again.to_string(), written);
    }
});
