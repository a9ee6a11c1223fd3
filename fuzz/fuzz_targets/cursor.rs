//! Fuzzes cursors: a parsed cursor survives being formatted and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessiond::subject::Cursor;

fuzz_target!(|text: &str| {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
    }
});
