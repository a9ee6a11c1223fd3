//! Limits how long a call may take.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::HeaderMap;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::error::ServiceError;

pin_project! {
    /// A call that fails after `limit`, or after its client's timeout if that is shorter.
    // Not an async fn, whose future would hold the call twice: as its argument, and where it is polled.
    pub(super) struct Within<F> {
        #[pin]
        call: F,
        headers: HeaderMap,
        limit: Duration,
        timer: Option<Timer>,
    }
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// Whether the timeout is the client's and not the server's.
    is_clients: bool,
}

/// Limits the duration of `call` to `limit`, or to the `grpc-timeout` in `headers` if that is shorter.
pub(super) fn within<F>(call: F, headers: HeaderMap, limit: Duration) -> Within<F> {
    Within { call, headers, limit, timer: None }
}

impl<F, T> Future for Within<F>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.call.poll(context) {
            return Poll::Ready(answer);
        }
        // Most calls are ready immediately. They need no timer, and nobody parses their timeout.
        let limit = *this.limit;
        let timer = this.timer.get_or_insert_with(|| {
            // Drop the headers: clients determine their size, and a waiting call must not keep them in memory.
            let timeout = grpc_timeout(&mem::take(this.headers)).filter(|timeout| *timeout < limit);
            Timer { sleep: Box::pin(sleep(timeout.unwrap_or(limit))), is_clients: timeout.is_some() }
        });
        ready!(timer.sleep.as_mut().poll(context));
        Poll::Ready(Err(if timer.is_clients {
            ServiceError::DeadlineExceeded
        } else {
            ServiceError::CallTimeout { limit }
        }))
    }
}

/// Returns the timeout in the `grpc-timeout` header: up to eight digits and a unit.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let (digits, unit) = headers.get("grpc-timeout")?.as_bytes().split_last().map(|(unit, digits)| (digits, unit))?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())])
    }

    #[test]
    fn grpc_timeouts_are_parsed() {
        for (text, timeout) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(grpc_timeout(&headers(text)), Some(timeout), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "999999999S", "1 S"] {
            assert_eq!(grpc_timeout(&headers(text)), None, "{text}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_limit_and_client_timeout_ends_a_call() {
        let limit = Duration::from_secs(30);
        for (timeout, late) in [("1S", 1), ("29S", 29), ("31S", 30), ("nonsense", 30)] {
            let began = tokio::time::Instant::now();
            let error = within(pending::<Result<(), _>>(), headers(timeout), limit).await.unwrap_err();
            assert_eq!(began.elapsed().as_secs(), late);
            assert_eq!(matches!(error, ServiceError::DeadlineExceeded), late < 30, "{error:?}");
        }
        assert!(
            within(async { Ok(()) }, headers("0n"), limit).await.is_ok(),
            "a call that is ready immediately never times out"
        );
    }
}
