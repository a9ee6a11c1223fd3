import type { Duration } from "./generated/google/protobuf/duration";

/** Converts milliseconds to a protobuf duration. */
export function toDuration(ms: number): Duration {
  if (!Number.isFinite(ms)) throw new RangeError(`a duration must be a finite number of milliseconds: got ${ms}`);
  const seconds = Math.trunc(ms / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1000) * 1e6) };
}

/** Converts a protobuf duration to milliseconds. */
export function toMs(duration: Duration | undefined): number | undefined {
  return duration && Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}
