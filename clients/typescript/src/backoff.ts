const BASE_MS = 100;
const CAP_MS = 1000;
/** The shortest delay, whatever the random number or the server says. */
const FLOOR_MS = 10;
/** The longest RetryInfo that is obeyed. */
const MAX_RETRY_AFTER_MS = 5 * 60_000;

/**
 * Exponential backoff with full jitter: each delay is random between 0 and a ceiling that doubles from 100 ms to 1 s.
 * Clients that were cut off together therefore do not come back together.
 */
export class Backoff {
  private ceilingMs = BASE_MS;

  /** Returns the delay after another failure: a random one, or the server's `retryAfterMs` if that is longer. */
  afterFailure(retryAfterMs?: number): number {
    return Math.max(this.randomDelay(CAP_MS), Math.min(retryAfterMs ?? 0, MAX_RETRY_AFTER_MS));
  }

  /** Like {@link afterFailure}, for a caller that must not wait longer than `capMs`. Ignores a longer `retryAfterMs`. */
  afterFailureWithin(capMs: number, retryAfterMs = 0): number {
    const delay = this.randomDelay(capMs);
    return retryAfterMs <= capMs ? Math.max(delay, retryAfterMs) : delay;
  }

  /** Starts over after a success. */
  reset(): void {
    this.ceilingMs = BASE_MS;
  }

  private randomDelay(capMs: number): number {
    const delay = Math.random() * Math.min(this.ceilingMs, capMs);
    this.ceilingMs = Math.min(this.ceilingMs * 2, CAP_MS);
    return Math.max(delay, FLOOR_MS);
  }
}
