import { status as Code } from "@grpc/grpc-js";

import { Backoff } from "./backoff";
import { Book, type Seat, type Entry } from "./book";
import type { Client } from "./client";
import { Connection } from "./connection";
import { closedError, gatewayStopped, SessiondError } from "./errors";
import type { Lease } from "./lease";
import { LeaseStream } from "./lease-stream";
import type { Logger } from "./logger";
import { Reconciler } from "./reconciler";
import { SessionKey, type SessionId } from "./session";
import type { Target } from "./transport";
import { Waiter } from "./wait";

/** How a {@link Gateway} holds its sessions. */
export interface GatewayOptions {
  /** How long the sessions of a gateway live that has died: 30 s by default. */
  readonly ttlMs?: number;
  /** How long {@link Gateway.stop} leaves clients to reconnect elsewhere: 30 s by default. 0 ends their sessions at once. */
  readonly lingerMs?: number;
}

/** Options of {@link Gateway.connect}. */
export interface ConnectOptions {
  /** Closes the connection when it aborts, during the call too. */
  readonly signal?: AbortSignal;
}

/** What a gateway is made of. */
export interface GatewayParts {
  readonly client: Client;
  readonly lease: Lease;
  readonly target: Target;
  readonly timeoutMs: number;
  readonly logger: Logger;
}

const DEFAULT_LINGER_MS = 30_000;
/** The most sessions of one round. */
const ROUND = 4096;
/** Heartbeats of the lease's stream per ttl. Three missed ones count as silence. */
const HEARTBEATS_PER_TTL = 6;
const SHORTEST_HEARTBEAT_MS = 500;
/** The longest pause that the registry may ask for. */
const LONGEST_RETRY_AFTER_MS = 10_000;

/**
 * A gateway: it holds a session for each open connection, and keeps the registry in agreement with them.
 *
 * - The newest connection wins: {@link connect} takes the session over from the gateway that held it.
 * - Connections whose session has moved or was destroyed elsewhere are told to close.
 * - Connections stay open while the registry is away. If the lease is lost, they are registered again under a new one,
 *   without stealing sessions that have moved in the meantime.
 */
export class Gateway {
  private readonly book: Book;
  private readonly reconciler: Reconciler;
  private readonly backoff = new Backoff();
  private readonly waiter = new Waiter();
  private readonly stopListening: () => void;
  private readonly running: Promise<void>;
  private stream: LeaseStream;
  private streamedLease: bigint;
  private isStopped = false;
  private stopping: Promise<void> | undefined;

  /** @internal */
  constructor(
    private readonly parts: GatewayParts,
    private readonly options: GatewayOptions,
  ) {
    const { client, lease, logger } = parts;
    this.book = new Book(() => {
      this.waiter.wake();
    });
    this.reconciler = new Reconciler(this.book, client, lease, logger);
    this.stream = this.openStream();
    this.streamedLease = lease.id;
    this.stopListening = lease.onChange(() => {
      this.leaseChanged();
    });
    this.running = this.run();
  }

  /** The lease of the gateway. It changes when the lease is lost. */
  get leaseId(): bigint {
    return this.parts.lease.id;
  }

  /**
   * Says that a client has connected. Returns once its session is under the gateway's lease.
   *
   * Fails with a {@link SessionElsewhereError} if the client has meanwhile connected to another gateway, with
   * DEADLINE_EXCEEDED if the registry does not answer within the client's timeout, and with the signal's reason if it
   * aborts. Close the client's connection in each case.
   */
  connect(session: SessionId, { signal }: ConnectOptions = {}): Promise<Connection> {
    return new Promise((resolve, reject) => {
      const key = SessionKey.of(session);
      if (this.isStopped) throw gatewayStopped();
      signal?.throwIfAborted();
      const entry = this.book.open(key);
      const connection = new Connection(key, () => {
        leave(closedError("connection"));
      });
      const leave = (error: Error) => {
        this.leave(entry, seat);
        fail(error);
      };
      const fail = (error: Error) => {
        clearTimeout(timer);
        reject(error);
      };
      const timer = setTimeout(() => {
        connection.end({ type: "closed" });
        leave(new SessiondError(Code.DEADLINE_EXCEEDED, "the registry did not register the session in time"));
      }, this.parts.timeoutMs);
      const seat: Seat = {
        connection,
        openedAt: performance.now(),
        state: "opening",
        settle: (error) => {
          if (error) {
            fail(error);
          } else {
            clearTimeout(timer);
            resolve(connection);
          }
        },
      };
      entry.seats.push(seat);
      this.book.markDirty(entry);
      if (signal) {
        const abort = () => {
          reject(signal.reason instanceof Error ? signal.reason : new Error(String(signal.reason)));
          connection.close();
        };
        signal.addEventListener("abort", abort, { once: true });
        void connection.closed.then(() => {
          signal.removeEventListener("abort", abort);
        });
      }
    });
  }

  /**
   * Stops the gateway: it tells every connection to close, and lets its lease linger for `lingerMs`, so that clients
   * reconnect elsewhere and no observer sees their sessions disappear. Sessions whose connections were closed before
   * end now. Calling this again waits for the same stop.
   */
  stop(lingerMs = this.options.lingerMs ?? DEFAULT_LINGER_MS): Promise<void> {
    this.stopping ??= this.end(lingerMs);
    return this.stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  private async end(lingerMs: number): Promise<void> {
    this.isStopped = true;
    this.stopListening();
    this.stream.close();
    this.waiter.wake();
    for (const { seats } of this.book) {
      for (const { connection, state, settle } of seats) {
        connection.end({ type: "stopped" });
        if (state !== "registered") settle(gatewayStopped());
      }
    }
    await this.running;
    await this.reconciler.destroy(this.book.takeDirty(Infinity));
    try {
      await this.parts.lease.revoke(lingerMs);
    } catch (error) {
      // A lease that is gone is what was asked for.
      if (!(error instanceof SessiondError && error.isLeaseGone)) throw error;
    }
  }

  private leave(entry: Entry, seat: Seat): void {
    entry.seats = entry.seats.filter((other) => other !== seat);
    if (!this.isStopped && entry.seats.length === 0) this.book.markDirty(entry);
  }

  private async run(): Promise<void> {
    while (!this.stopped()) {
      if (!this.book.hasDirty) {
        await this.waiter.wait(Infinity);
        continue;
      }
      // Whatever else this turn of the event loop opens or closes goes into the same calls.
      await new Promise((resolve) => setImmediate(resolve));
      const error = await this.reconciler.round(this.book.takeDirty(ROUND));
      if (error) await this.pause(this.backoff.afterFailure(Math.min(error.retryAfterMs ?? 0, LONGEST_RETRY_AFTER_MS)));
      else this.backoff.reset();
    }
  }

  /** Waits even if sessions become dirty, but not after a stop. */
  private async pause(ms: number): Promise<void> {
    const until = performance.now() + ms;
    while (performance.now() < until && !this.stopped()) await this.waiter.wait(until);
  }

  private stopped(): boolean {
    return this.isStopped;
  }

  /** A new lease: all sessions with connections are to be registered again, without stealing any. */
  private leaseChanged(): void {
    const { id, isHeld } = this.parts.lease;
    if (!isHeld || id === this.streamedLease) return;
    this.streamedLease = id;
    this.stream.close();
    this.stream = this.openStream();
    for (const entry of this.book) {
      if (!entry.isRegistered) continue;
      entry.claim = 0n;
      this.book.markDirty(entry);
    }
    this.waiter.wake();
  }

  private openStream(): LeaseStream {
    const { target, timeoutMs, lease, logger } = this.parts;
    const heartbeatMs = Math.max(SHORTEST_HEARTBEAT_MS, (this.options.ttlMs ?? 30_000) / HEARTBEATS_PER_TTL);
    return new LeaseStream(target, timeoutMs, heartbeatMs, lease.id, this.book, logger);
  }
}
