import { status as Code } from "@grpc/grpc-js";

import { toDuration } from "./duration";
import { SessiondError } from "./errors";
import { SessionEventType } from "./generated/sessiond/v1/session_service";
import { ResumingStream, type StreamFilters } from "./resuming-stream";
import { filterIds, leaseNumber } from "./session";
import type { Place } from "./place";
import type { Target } from "./transport";
import { unpack, type WatchUpdate } from "./updates";

/** The sessions to observe. A session must match every filter that is set; an empty filter matches everything. */
export interface SessionFilters {
  readonly sessionIds?: readonly bigint[];
  readonly authKeyIds?: readonly bigint[];
  /** Only sessions under these leases. Implies placements. A session that moves in or out is reported as moved. */
  readonly leaseIds?: readonly bigint[];
}

/** What a watch returns, and where it starts. By default it returns every change from now on. */
export interface WatchOptions extends SessionFilters {
  /** Starts with a snapshot of the existing sessions. */
  readonly snapshot?: boolean;
  /** Starts right after the update at which {@link Watch.cursor} was this cursor. Use the same filters. */
  readonly after?: string;
  /** Only these changes. Does not filter snapshots. */
  readonly types?: readonly ("created" | "destroyed" | "moved")[];
  /** Also reports moves, the lease of each session, and places in the change log. */
  readonly placements?: boolean;
  /** How long the stream may be quiet before the server sends a heartbeat: 100 ms to 1 h, 15 s by default. */
  readonly heartbeatMs?: number;
}

const TYPES = {
  created: SessionEventType.CREATED,
  destroyed: SessionEventType.DESTROYED,
  moved: SessionEventType.MOVED,
};

/** Returns the filters as they are sent. */
export function streamFilters(options: WatchOptions): StreamFilters {
  return {
    sessionIds: filterIds("sessionIds", options.sessionIds),
    authKeyIds: filterIds("authKeyIds", options.authKeyIds),
    leaseIds: (options.leaseIds ?? []).map(leaseNumber),
    types: (options.types ?? []).map((type) => TYPES[type]),
    placements: options.placements ?? false,
    heartbeat: options.heartbeatMs === undefined ? undefined : toDuration(options.heartbeatMs),
  };
}

/**
 * An observer of the registry, returned by {@link Client.watch}. Iterate over it with `for await`; leaving the loop
 * closes it.
 *
 * If the connection breaks or goes silent for three heartbeats, the watch returns `disconnected`, reconnects, and
 * resumes after the last update. No event is lost or repeated. If resuming is impossible, it returns `reset`, and a
 * snapshot follows.
 *
 * It reads only when asked to, so a slow reader slows down the server and not the memory. One that falls too far behind
 * gets a `reset`.
 *
 * The iteration throws only errors that are not retryable, such as a missing permission. Calling {@link next} again
 * then reconnects.
 */
export class Watch implements AsyncIterableIterator<WatchUpdate> {
  private readonly stream: ResumingStream;
  private last: Promise<unknown> = Promise.resolve();
  private lastPlaces: readonly Place[] = [];

  /** @internal */
  constructor(target: Target, timeoutMs: number, options: WatchOptions) {
    const { snapshot, after } = options;
    if (snapshot && after !== undefined) {
      throw new SessiondError(Code.INVALID_ARGUMENT, "snapshot and after exclude each other");
    }
    const start =
      after !== undefined
        ? ({ $case: "cursor", cursor: after } as const)
        : snapshot
          ? ({ $case: "snapshot", snapshot } as const)
          : undefined;
    this.stream = new ResumingStream(target, timeoutMs, streamFilters(options), start);
  }

  /**
   * The cursor after the last update: pass it as `after`, in this process or a later one. Undefined before the first
   * update, and within a snapshot.
   */
  get cursor(): string | undefined {
    return this.stream.cursor;
  }

  /** The places in the change log that came with the last update, if the watch has placements. */
  get places(): readonly Place[] {
    return this.lastPlaces;
  }

  /** Waits for the next update. */
  next(): Promise<IteratorResult<WatchUpdate, undefined>> {
    const next = this.last.then(() => this.step());
    this.last = next.catch(() => undefined);
    return next;
  }

  /** Ends the watch, and every loop over it. */
  close(): void {
    this.stream.close();
  }

  return(): Promise<IteratorResult<WatchUpdate, undefined>> {
    this.close();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  private async step(): Promise<IteratorResult<WatchUpdate, undefined>> {
    const update = await this.stream.next();
    this.lastPlaces = update !== undefined && "places" in update ? update.places : [];
    return update === undefined ? { done: true, value: undefined } : { done: false, value: unpack(update) };
  }
}
