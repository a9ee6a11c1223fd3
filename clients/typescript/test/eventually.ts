import { setTimeout as sleep } from "node:timers/promises";

/** Waits until `condition` returns something true, and fails after `ms`. */
export async function eventually<T>(
  what: string,
  condition: () => T | Promise<T>,
  ms = 20_000,
): Promise<NonNullable<T>> {
  const deadline = Date.now() + ms;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`did not happen within ${ms} ms: ${what}`);
    await sleep(20);
  }
}

/** Fails unless `promise` settles within `ms`. */
export async function within<T>(promise: Promise<T>, what: string, ms = 20_000): Promise<T> {
  const timeout = new AbortController();
  const late = sleep(ms, undefined, { signal: timeout.signal }).then(
    () => Promise.reject(new Error(`did not happen within ${ms} ms: ${what}`)),
    () => new Promise<never>(() => undefined),
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    timeout.abort();
  }
}
