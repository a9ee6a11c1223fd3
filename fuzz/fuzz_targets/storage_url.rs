//! Fuzzes storage URLs: a formatted URL parses to the same URL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessiond::storage::StorageUrl;

fuzz_target!(|text: &str| {
    if let Ok(url) = text.parse::<StorageUrl>() {
        let written = url.to_string();
        let again: StorageUrl = written.parse().expect("a formatted URL parses");
        assert_eq!(again.to_string(), written);
    }
});
