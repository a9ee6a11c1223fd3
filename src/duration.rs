//! Conversions between `google.protobuf.Duration` and [`Duration`].

use std::time::Duration;

/// Converts to protobuf. A duration that protobuf cannot hold (over 292 billion years) becomes the longest that it can.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Nanoseconds are below a billion, so they fit.
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

/// Converts from protobuf. Returns `None` if the duration is negative or malformed by protobuf's rules. The conversion
/// in `prost_types` is not used: it accepts a billion nanoseconds or more by carrying them into the seconds, and panics
/// on the smallest duration if overflow checks are on.
pub(crate) fn from_proto(duration: prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_negative_and_malformed_durations_are_refused() {
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
