import { status as Code, type ClientReadableStream } from "@grpc/grpc-js";

import { Backoff } from "./backoff";
import { fromServiceError, protocolError, SessiondError } from "./errors";
import { toMs } from "./duration";
import type { SubscribeRequest } from "./generated/sessiond/v1/session_service";
import { Subscribe } from "./methods";
import { toPlaces } from "./place";
import type { StreamMessage } from "./stream-message";
import { Transport, type SentStream, type Target } from "./transport";
import { resetReason, type PackedUpdate } from "./updates";
import { Waiter } from "./wait";

const DEFAULT_HEARTBEAT_MS = 15_000;
/** The longest heartbeat that the server grants. */
const MAX_HEARTBEAT_MS = 60 * 60_000;
/** How many heartbeats may be missed before a stream counts as dead. */
const SILENT_HEARTBEATS = 3;
/** How late any heartbeat may be, because a busy machine is not a dead one. */
const SILENCE_SLACK_MS = 1000;
/** A timer that fires so much too late shows that this process was paused or busy. */
const PAUSE_MS = 200;

/** The filters of a stream. Where it starts is set for each try. */
export type StreamFilters = Omit<SubscribeRequest, "start">;

/** A stream that reconnects and resumes by itself. */
export class ResumingStream {
  private open: OpenStream | undefined;
  private isClosed = false;
  private retryAt = performance.now();
  private readonly backoff = new Backoff();
  private readonly waiter = new Waiter();
  /** Whether the open stream has returned a part of a snapshot that is not complete yet. */
  private isInSnapshot = false;
  /** Whether the caller holds a part of a snapshot from a broken stream and must still be given a reset. */
  private owesReset = false;

  constructor(
    private readonly target: Target,
    private readonly timeoutMs: number,
    private readonly filters: StreamFilters,
    private start: SubscribeRequest["start"],
  ) {}

  /** The cursor after the last update. Undefined within a snapshot. */
  get cursor(): string | undefined {
    return this.start?.$case === "cursor" && !this.owesReset ? this.start.cursor : undefined;
  }

  /**
   * Waits for the next update. Returns undefined once the stream is closed.
   *
   * Throws errors that are not retryable. It may be called again after that: it then waits and reconnects.
   */
  async next(): Promise<PackedUpdate | undefined> {
    if (this.open) excuseBusyCaller(this.open);
    for (;;) {
      if (this.isClosed) return undefined;
      if (this.open === undefined) {
        if (performance.now() < this.retryAt) {
          await this.waiter.wait(this.retryAt);
          continue;
        }
        this.open = this.connect();
      }
      const update = await this.step(this.open);
      if (update !== undefined) return update;
    }
  }

  /** Ends the stream, and a pending {@link next}. */
  close(): void {
    this.isClosed = true;
    this.disconnect();
    this.waiter.wake();
  }

  /** Returns an update if there is one now, and otherwise waits for something to happen. */
  private async step(open: OpenStream): Promise<PackedUpdate | undefined> {
    if (open.isSubscribed && this.owesReset) {
      this.owesReset = false;
      return { type: "reset", reason: "snapshot-interrupted" };
    }
    try {
      const message = open.read();
      if (message !== null) return this.advance(open, message);
      if (open.end !== undefined) throw open.end;
      if (await this.waiter.wait(open.deadline)) {
        if (performance.now() - open.deadline > PAUSE_MS) excuseBusyCaller(open);
        if (open.deadline <= performance.now()) throw silence(open);
      }
      return undefined;
    } catch (error) {
      return this.fail(fromServiceError(error));
    }
  }

  /** Opens a stream on a new connection, because the old one may be dead without either end having noticed. */
  private connect(): OpenStream {
    const transport = Transport.dedicated(this.target);
    const sent = transport.stream(Subscribe, { ...this.filters, start: this.start });
    return new OpenStream(transport, sent, this.timeoutMs, this.waiter);
  }

  private disconnect(): void {
    this.open?.close();
    this.open = undefined;
  }

  private fail(error: SessiondError): PackedUpdate {
    this.disconnect();
    this.owesReset ||= this.isInSnapshot;
    this.isInSnapshot = false;
    const retryInMs = error.hasNewToken ? 0 : this.backoff.afterFailure(error.retryAfterMs);
    this.retryAt = performance.now() + retryInMs;
    if (!error.isRetryable) throw error;
    return { type: "disconnected", error, retryInMs };
  }

  /** Moves to the place after `message`. Returns undefined for a message of a kind that only newer servers know. */
  private advance(open: OpenStream, { body, cursor }: StreamMessage): PackedUpdate | undefined {
    if (body?.$case === "subscribed") {
      open.isSubscribed = true;
      open.heartbeatMs = Math.min(toMs(body.subscribed.heartbeat) ?? DEFAULT_HEARTBEAT_MS, MAX_HEARTBEAT_MS);
      open.limitMs = Math.max(open.heartbeatMs * SILENT_HEARTBEATS, open.heartbeatMs + SILENCE_SLACK_MS);
    } else if (!open.isSubscribed) {
      throw protocolError("the stream did not start with `subscribed`");
    }
    open.isExcused = false;
    open.deadline = performance.now() + open.limitMs;
    if (cursor === "") {
      this.start = { $case: "snapshot", snapshot: true };
      this.isInSnapshot = true;
    } else {
      this.start = { $case: "cursor", cursor };
      this.isInSnapshot = false;
      // `subscribed` alone is not progress: do not hammer a server that always fails after it.
      if (body?.$case !== "subscribed") this.backoff.reset();
    }
    return toUpdate(body, cursor, open.heartbeatMs);
  }
}

/** A stream on its own connection. */
class OpenStream {
  isSubscribed = false;
  heartbeatMs = DEFAULT_HEARTBEAT_MS;
  /** How long the stream may be silent. */
  limitMs: number;
  /** When the stream is dead unless something arrives. */
  deadline: number;
  /** Whether the deadline was extended because this process was busy. */
  isExcused = false;
  /** Why the stream ended. What has arrived before can still be read. */
  end: SessiondError | undefined;

  private readonly call: ClientReadableStream<StreamMessage>;

  constructor(
    private readonly transport: Transport,
    { call, toError }: SentStream<StreamMessage>,
    timeoutMs: number,
    waiter: Waiter,
  ) {
    this.call = call;
    this.limitMs = timeoutMs;
    this.deadline = performance.now() + timeoutMs;
    const wake = () => {
      waiter.wake();
    };
    call.on("readable", wake);
    call.on("error", (error) => {
      this.end ??= toError(error);
      wake();
    });
    call.on("status", () => {
      this.end ??= new SessiondError(Code.UNAVAILABLE, "the stream ended without a status");
      wake();
    });
  }

  /** Returns a message if there is one. What is not read holds the server back through flow control. */
  read(): StreamMessage | null {
    return this.call.read();
  }

  close(): void {
    this.call.cancel();
    this.transport.close();
  }
}

/**
 * Extends a deadline that passed while the caller was busy or the process paused, so that no message could arrive. This
 * happens only once between messages: frequent calls must not keep a dead stream alive.
 */
function excuseBusyCaller(open: OpenStream): void {
  if (!open.isExcused && open.deadline <= performance.now()) {
    open.isExcused = true;
    open.deadline = performance.now() + SILENCE_SLACK_MS;
  }
}

function silence({ isSubscribed, limitMs }: OpenStream): SessiondError {
  return isSubscribed
    ? new SessiondError(Code.UNAVAILABLE, `the stream received nothing for ${limitMs} ms, not even a heartbeat`)
    : new SessiondError(Code.DEADLINE_EXCEEDED, `the server did not answer within ${limitMs} ms`);
}

function toUpdate(body: StreamMessage["body"], cursor: string, heartbeatMs: number): PackedUpdate | undefined {
  switch (body?.$case) {
    case "subscribed": {
      const { registryId, places } = body.subscribed;
      return { type: "subscribed", registryId, heartbeatMs, cursor, places: toPlaces(places) };
    }
    case "snapshot":
      return { type: "snapshot", sessions: body.sessions };
    case "synced":
      return { type: "synced", sessionCount: body.synced.sessionCount, places: toPlaces(body.synced.places) };
    case "events":
      return { type: "events", events: body.events, places: body.place ? toPlaces([body.place]) : [] };
    case "heartbeat":
      return { type: "heartbeat", places: toPlaces(body.heartbeat.places) };
    case "reset":
      return { type: "reset", reason: resetReason(body.reset.reason) };
    case undefined:
      return undefined;
  }
}
