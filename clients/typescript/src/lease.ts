import { status as Code } from "@grpc/grpc-js";

import { Backoff } from "./backoff";
import { fromServiceError, type SessiondError } from "./errors";
import { grantLease, keepLeaseAlive, revokeLease } from "./lease-calls";
import type { LeaseGrant } from "./lease-types";
import type { Logger } from "./logger";
import { Transport, type Target } from "./transport";
import { Waiter } from "./wait";

/** Keep-alives per ttl. Two of them may fail before the lease is lost. */
const KEEP_ALIVES_PER_TTL = 3;
/** The earliest a keep-alive is made, as a part of its interval. The random rest spreads gateways. */
const EARLIEST_KEEP_ALIVE = 0.8;
/** While the lease can still be saved, tries are at most this part of the ttl apart. */
const RETRIES_PER_TTL = 10;
/** The range that the protocol allows. */
const SHORTEST_TTL_MS = 1000;
const LONGEST_TTL_MS = 24 * 60 * 60_000;

/**
 * A change in the state of a {@link Lease}.
 *
 * - `lost`: the lease is gone, or may be gone because the registry could not be reached for a whole ttl.
 * - `recovered`: the registry answers again, and the lease and its sessions have survived.
 * - `regranted`: a new lease has replaced the one that is gone, and no session is under it yet. Register all sessions
 *   again with {@link Client.batchTake}.
 */
export type LeaseEvent =
  | { readonly type: "lost" }
  | { readonly type: "recovered" }
  | { readonly type: "regranted"; readonly leaseId: bigint };

/** What a lease is made of. */
export interface LeaseParts {
  readonly target: Target;
  readonly timeoutMs: number;
  readonly logger: Logger;
  readonly ttlMs: number;
  readonly owner: string;
}

/**
 * A lease that is kept alive in the background, returned by {@link Client.lease}.
 *
 * It has its own connection, and is kept alive three times per ttl. Failed calls are retried at least ten times per
 * ttl. If the lease is gone or lingers, a new one is granted. Only {@link revoke} ends it for good.
 */
export class Lease {
  private transport: Transport;
  private leaseId: bigint;
  private held = true;
  private isGone = false;
  private isRevoked = false;
  private ttlMs: number;
  /** The lease certainly lives until then: the registry counts from a moment during the call. */
  private expires: number;
  private readonly firstId: bigint;
  private readonly backoff = new Backoff();
  private readonly waiter = new Waiter();
  private readonly listeners = new Set<() => void>();

  private constructor(
    private readonly parts: LeaseParts,
    transport: Transport,
    grant: LeaseGrant,
    before: number,
  ) {
    this.transport = transport;
    this.leaseId = this.firstId = grant.leaseId;
    this.ttlMs = clampTtl(grant.ttlMs);
    this.expires = before + this.ttlMs;
    void this.keep();
  }

  /** @internal */
  static async start(parts: LeaseParts): Promise<Lease> {
    const transport = Transport.dedicated(parts.target);
    const before = performance.now();
    try {
      const grant = await grantLease(transport, parts.ttlMs, parts.owner, parts.timeoutMs);
      return new Lease(parts, transport, grant, before);
    } catch (error) {
      transport.close();
      throw error;
    }
  }

  /** The id of the lease, under which to create sessions; the last one while no lease is held. */
  get id(): bigint {
    return this.leaseId;
  }

  /** Whether the lease is held, as far as the client knows. */
  get isHeld(): boolean {
    return this.held;
  }

  /**
   * Returns the events since the lease was first granted. Ends once the lease is revoked.
   *
   * However late you read, the events are up to date: those that are out of date by then are left out.
   */
  async *events(): AsyncGenerator<LeaseEvent, void, undefined> {
    let reported = { leaseId: this.firstId, held: true };
    const changed = new Waiter();
    const stop = this.onChange(() => {
      changed.wake();
    });
    try {
      while (!this.isRevoked) {
        const now = { leaseId: this.leaseId, held: this.held };
        if (reported.held && !now.held) {
          // Keep the id that was reported: a lease granted and lost since must come as regranted if it recovers.
          reported = { ...reported, held: false };
          yield { type: "lost" };
        } else if (now.held && now.leaseId !== reported.leaseId) {
          reported = now;
          yield { type: "regranted", leaseId: now.leaseId };
        } else if (now.held && !reported.held) {
          reported = now;
          yield { type: "recovered" };
        } else {
          await changed.wait(Infinity);
        }
      }
    } finally {
      stop();
    }
  }

  /** Calls `listener` after each change of the state. Returns how to stop that. @internal */
  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Makes the next keep-alive now, because a call has reported that the lease is gone. @internal */
  checkNow(): void {
    this.waiter.wake();
  }

  /**
   * Revokes the lease, now or after `lingerMs`. Returns how many sessions were destroyed with it.
   *
   * A gateway that shuts down lets its lease linger: its clients reconnect through other gateways, and no observer sees
   * their sessions disappear.
   */
  async revoke(lingerMs = 0): Promise<bigint> {
    if (this.isRevoked) this.transport = Transport.dedicated(this.parts.target);
    this.isRevoked = true;
    this.waiter.wake();
    this.notify();
    try {
      return await revokeLease(this.transport, this.leaseId, lingerMs, this.parts.timeoutMs);
    } finally {
      this.transport.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isRevoked) await this.revoke();
  }

  private async keep(): Promise<void> {
    let waitMs = this.intervalMs();
    while (await this.waitFor(waitMs)) {
      try {
        await this.tryOnce();
        this.backoff.reset();
        waitMs = this.intervalMs();
      } catch (error) {
        waitMs = this.afterFailure(fromServiceError(error));
      }
    }
  }

  /** Waits until the next try. Returns false once the lease is revoked. */
  private async waitFor(waitMs: number): Promise<boolean> {
    const next = performance.now() + waitMs;
    if (this.isRevoked) return false;
    const isDue = await this.waiter.wait(Math.min(next, this.expires));
    if (this.isExpired()) this.lose("the registry was unreachable for the ttl");
    if (isDue && performance.now() < next && !this.stopped()) await this.waiter.wait(next);
    return !this.stopped();
  }

  private stopped(): boolean {
    return this.isRevoked;
  }

  private isExpired(): boolean {
    return this.expires <= performance.now();
  }

  /** Keeps the lease alive, or grants a new one if it is gone. */
  private async tryOnce(): Promise<void> {
    if (!this.isGone) {
      const before = performance.now();
      try {
        const ttlMs = await keepLeaseAlive(this.transport, this.leaseId, this.tryTimeoutMs());
        this.hold({ leaseId: this.leaseId, ttlMs }, before);
        return;
      } catch (error) {
        if (!fromServiceError(error).isLeaseGone) throw error;
        this.isGone = true;
        this.lose("the registry reports that it is gone");
      }
    }
    if (this.stopped()) return;
    const before = performance.now();
    const grant = await grantLease(this.transport, this.parts.ttlMs, this.parts.owner, this.tryTimeoutMs());
    this.hold(grant, before);
  }

  /** How long a try may take. */
  private tryTimeoutMs(): number {
    const longest = this.ttlMs / KEEP_ALIVES_PER_TTL;
    if (!this.held) return longest;
    // Half of the remaining time leaves room for another try. At the end use all of it, so that `lost` is not late.
    const left = Math.max(0, this.expires - performance.now());
    return Math.min(Math.max(left / 2, this.ttlMs / RETRIES_PER_TTL), longest, left);
  }

  private afterFailure(error: SessiondError): number {
    if (this.isRevoked) return 0;
    this.parts.logger.debug(`cannot keep the lease alive, retrying: lease_id=${this.leaseId} error="${error.message}"`);
    if (error.code === Code.DEADLINE_EXCEEDED) {
      // The connection may be dead without either end having noticed.
      this.transport.close();
      this.transport = Transport.dedicated(this.parts.target);
    }
    // Once the lease is lost there is no hurry.
    const triesPerTtl = this.held ? RETRIES_PER_TTL : KEEP_ALIVES_PER_TTL;
    return this.backoff.afterFailureWithin(this.ttlMs / triesPerTtl, error.retryAfterMs);
  }

  private intervalMs(): number {
    const spread = EARLIEST_KEEP_ALIVE + (1 - EARLIEST_KEEP_ALIVE) * Math.random();
    return (this.ttlMs / KEEP_ALIVES_PER_TTL) * spread;
  }

  private hold({ leaseId, ttlMs }: LeaseGrant, before: number): void {
    if (this.isRevoked) return;
    const { leaseId: lastId, held: wasHeld } = this;
    this.ttlMs = clampTtl(ttlMs);
    this.expires = before + this.ttlMs;
    this.isGone = false;
    this.held = true;
    this.leaseId = leaseId;
    if (leaseId !== lastId) {
      this.parts.logger.info(`granted a new lease: lease_id=${leaseId} lost_lease_id=${lastId}`);
    } else if (!wasHeld) {
      this.parts.logger.info(`the lease has survived the outage: lease_id=${leaseId}`);
    } else {
      return;
    }
    this.notify();
  }

  private lose(why: string): void {
    if (!this.held || this.isRevoked) return;
    this.held = false;
    this.parts.logger.warn(`lost the lease: lease_id=${this.leaseId} why="${why}"`);
    this.notify();
  }

  private notify(): void {
    for (const listener of this.listeners) listener();
  }
}

function clampTtl(ttlMs: number): number {
  return Math.min(Math.max(ttlMs, SHORTEST_TTL_MS), LONGEST_TTL_MS);
}
