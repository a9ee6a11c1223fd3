//! Whether this machine has what only some tests need.

use std::env;

/// Whether what `name` stands for is not `found`: a test without it says that it skipped, unless `SESSIOND_TEST_REQUIRE`
/// names it. Then it fails.
pub(crate) fn is_missing(name: &str, found: bool) -> bool {
    if !found {
        let required = env::var("SESSIOND_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|required| required == name), "{name} is not installed");
        #[allow(clippy::print_stderr)] // To whoever looks at what the test printed.
        {
            eprintln!("SKIPPED: {name} is not installed");
        }
    }
    !found
}
