//! `google.protobuf.Duration` and the duration of Rust.

use std::time::Duration;

/// As protobuf has it. What it cannot express, some 300 billion years, becomes the longest that it can.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Less than a billion, so it fits.
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

/// None when it is negative or, by protobuf's rules, malformed. The conversion of `prost_types` takes one whose nanoseconds
/// are more than a second for what they add up to, and panics over the least of all where overflow is checked.
pub(crate) fn from_proto(duration: prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_duration_is_refused() {
        let proto = |seconds, nanos| from_proto(prost_types::Duration { seconds, nanos });
        assert_eq!(proto(1, 999_999_999), Some(Duration::new(1, 999_999_999)));
        assert_eq!(proto(0, 0), Some(Duration::ZERO));
        for (seconds, nanos) in [(1, -1), (-1, 0), (-1, 1), (1, 1_000_000_000), (i64::MIN, i32::MIN), (0, i32::MAX)] {
            assert_eq!(proto(seconds, nanos), None, "{seconds} s {nanos} ns");
        }
        assert_eq!(from_proto(to_proto(Duration::from_millis(1500))), Some(Duration::from_millis(1500)));
        assert_eq!(to_proto(Duration::MAX).seconds, i64::MAX);
    }
}
