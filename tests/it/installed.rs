//! Skips tests that need a program or feature that this machine lacks.

use std::env;

/// Returns true if `name` was not `found`, after printing that the test is skipped. Panics instead if
/// `SESSIOND_TEST_REQUIRE` lists `name`.
pub(crate) fn is_missing(name: &str, found: bool) -> bool {
    if !found {
        let required = env::var("SESSIOND_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|required| required == name), "{name} is not installed");
        #[allow(clippy::print_stderr)] // Visible in the test's output.
        {
            eprintln!("SKIPPED: {name} is not installed");
        }
    }
    !found
}
