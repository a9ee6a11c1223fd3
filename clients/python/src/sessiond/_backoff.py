"""The delay before a watch, a lease or a gateway retries."""

from __future__ import annotations

import random

_BASE = 0.1
_CAP = 1.0
# The shortest delay, whatever the random number or the server says.
_FLOOR = 0.01
# The longest RetryInfo delay that is obeyed.
_MAX_RETRY_AFTER = 300.0


class Backoff:
    """Exponential backoff with full jitter: each delay is random between 0 and a ceiling that doubles up to 1 s.

    Clients that were cut off together therefore do not come back together.
    """

    def __init__(self) -> None:
        self._ceiling = _BASE

    def after_failure(self, retry_after: float | None) -> float:
        """Returns the delay after another failure: a random one, or the server's `retry_after` if that is longer."""
        delay = self._random_delay(_CAP)
        return delay if retry_after is None else max(delay, min(retry_after, _MAX_RETRY_AFTER))

    def after_failure_within(self, cap: float, retry_after: float | None) -> float:
        """Is `after_failure` for a caller that must not wait longer than `cap`. Ignores a longer `retry_after`."""
        delay = self._random_delay(cap)
        return delay if retry_after is None or retry_after > cap else max(delay, retry_after)

    def reset(self) -> None:
        """Starts over after a success."""
        self._ceiling = _BASE

    def _random_delay(self, cap: float) -> float:
        # Cap the ceiling, not the random delay. Otherwise most delays would be exactly `cap`.
        ceiling = min(self._ceiling, cap)
        self._ceiling = min(self._ceiling * 2, _CAP)
        return max(random.random() * ceiling, _FLOOR)
