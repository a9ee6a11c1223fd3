import { status as Code } from "@grpc/grpc-js";

import type { Book, Entry, Seat } from "./book";
import type { Client } from "./client";
import type { CloseReason } from "./connection";
import { fromServiceError, SessiondError } from "./errors";
import type { Lease } from "./lease";
import type { Logger } from "./logger";

/** An answer that comes later than this is too old to take a session: its client may be elsewhere by now. */
const FRESH_MS = 1000;

/** Makes the calls about the sessions of a gateway, one round after the other. Nothing else makes such calls. */
export class Reconciler {
  constructor(
    private readonly book: Book,
    private readonly client: Client,
    private readonly lease: Lease,
    private readonly logger: Logger,
  ) {}

  /** Does what these sessions need. What fails is dirty again. Returns the last error. */
  async round(batch: readonly Entry[]): Promise<SessiondError | undefined> {
    const lease = this.lease.id;
    const errors = [
      await this.lookUp(batch, lease),
      await this.claim(batch, lease),
      await this.destroy(batch),
    ];
    for (const entry of batch) this.book.tidy(entry);
    return errors.findLast((error) => error !== undefined);
  }

  private async lookUp(batch: readonly Entry[], lease: bigint): Promise<SessiondError | undefined> {
    const entries = batch.filter((entry) => entry.needsLookup && entry.seats.length > 0);
    if (entries.length === 0) return undefined;
    const asked = new Map(entries.map((entry) => [entry, new Set(entry.seats)]));
    try {
      const { leaseIds } = await this.client.batchLookup(entries.map(({ key }) => key));
      const isGone = entries.some((entry, i) => leaseIds[i] === 0n && isAtHome(entry, this.lease.id));
      if (isGone) await this.checkLease(lease);
      entries.forEach((entry, i) => {
        const holder = leaseIds[i] ?? 0n;
        // A connection that was opened after the call was sent needs a newer answer.
        const hasAsked = (seat: Seat) => asked.get(entry)?.has(seat) ?? false;
        if (holder === lease) this.register(entry, lease, hasAsked);
        else located(entry, holder, this.lease.id, hasAsked);
      });
      return undefined;
    } catch (thrown) {
      const error = fromServiceError(thrown);
      for (const entry of entries) {
        if (!error.isRetryable && !error.isLeaseGone) {
          for (const seat of entry.seats) if (seat.state === "opening") seat.state = "claiming";
          entry.fail(error);
        }
        if (entry.needsLookup) this.book.markDirty(entry);
      }
      return this.report("look up sessions", error);
    }
  }

  private async claim(batch: readonly Entry[], lease: bigint): Promise<SessiondError | undefined> {
    const groups = groupBy(batch, ({ claim, seats }) => (claim === undefined || seats.length === 0 ? [] : [claim]));
    let failure: SessiondError | undefined;
    for (const [onlyFrom, entries] of groups) {
      failure = (await this.claimFrom(entries, lease, onlyFrom)) ?? failure;
    }
    return failure;
  }

  private async claimFrom(entries: Entry[], lease: bigint, onlyFrom: bigint): Promise<SessiondError | undefined> {
    for (const entry of entries) entry.suspect(lease);
    try {
      const { leaseIds } = await this.client.batchTake(
        entries.map(({ key }) => key),
        lease,
        { onlyFrom },
      );
      entries.forEach((entry, i) => {
        const holder = leaseIds[i] ?? 0n;
        if (holder === lease) {
          this.register(entry, lease, ({ state }) => state === "claiming");
        } else {
          entry.clear(lease);
          entry.refuse(holder);
        }
      });
      return undefined;
    } catch (thrown) {
      const error = fromServiceError(thrown);
      if (error.isLeaseGone) this.lease.checkNow();
      for (const entry of entries) {
        if (!error.isRetryable && !error.isLeaseGone) {
          entry.fail(error);
          // A session that is being restored keeps its connections.
          if (entry.isRegistered) entry.claim = 0n;
        }
        this.book.markDirty(entry);
      }
      return this.report("create sessions", error);
    }
  }

  /** Ends the sessions that have no connection. What fails is dirty again. Returns the last error. */
  async destroy(batch: readonly Entry[]): Promise<SessiondError | undefined> {
    const groups = groupBy(batch, ({ seats, under }) => (seats.length > 0 ? [] : under));
    let failure: SessiondError | undefined;
    for (const [leaseId, entries] of groups) {
      failure = (await this.destroyUnder(entries, leaseId)) ?? failure;
    }
    return failure;
  }

  private async destroyUnder(entries: Entry[], leaseId: bigint): Promise<SessiondError | undefined> {
    // A client may have come back during an earlier call of this round.
    const gone = entries.filter(({ seats }) => seats.length === 0);
    if (gone.length === 0) return undefined;
    for (const entry of gone) entry.claim = entry.hasLeft = undefined;
    try {
      await this.client.batchDestroy(
        gone.map(({ key }) => key),
        { leaseId },
      );
      for (const entry of gone) entry.clear(leaseId);
      return undefined;
    } catch (thrown) {
      const error = fromServiceError(thrown);
      for (const entry of gone) {
        if (error.isRetryable) this.book.markDirty(entry);
        else entry.clear(leaseId);
      }
      return this.report("destroy sessions", error);
    }
  }

  private register(entry: Entry, lease: bigint, isIncluded: (seat: Seat) => boolean): void {
    entry.register(lease, this.book.tick(), isIncluded);
    if (lease === this.lease.id || !entry.isRegistered) return;
    // The lease was lost during the call.
    entry.claim = 0n;
    this.book.markDirty(entry);
  }

  /**
   * Fails if the lease has ended or lingers. Its sessions may then be gone because it is, and wait for a new lease;
   * their connections stay open.
   */
  private async checkLease(leaseId: bigint): Promise<void> {
    for await (const { lingers } of this.client.listLeases({ leaseIds: [leaseId] })) if (!lingers) return;
    this.lease.checkNow();
    throw new SessiondError(Code.NOT_FOUND, `lease ${leaseId} is gone`, { reason: "LEASE_GONE" });
  }

  private report(what: string, error: SessiondError): SessiondError {
    this.logger.warn(`cannot ${what}, retrying: error="${error.message}"`);
    return error;
  }
}

/** The session is not under our lease. */
function located(
  entry: Entry,
  holder: bigint,
  lease: bigint,
  hasAsked: (seat: Seat) => boolean,
): void {
  // After the loss of a lease, the sessions that were under it wait for their place under the new one.
  const isRestoring = entry.registeredUnder !== 0n && !isAtHome(entry, lease);
  if (isRestoring && (holder === 0n || holder === entry.registeredUnder)) {
    entry.hasLeft = undefined;
  } else {
    entry.leave(reasonToLeave(holder, entry.hasLeft));
  }
  entry.under = entry.under.filter((other) => other === holder || other === entry.registeredUnder);
  let newest = -Infinity;
  for (const seat of entry.seats) {
    if (seat.state !== "opening" || !hasAsked(seat)) continue;
    seat.state = "claiming";
    newest = Math.max(newest, seat.openedAt);
  }
  if (newest > -Infinity) entry.claim = performance.now() - newest > FRESH_MS ? 0n : holder;
}

/** Whether the session is registered under the current lease, as far as we know. */
function isAtHome(entry: Entry, lease: bigint): boolean {
  return entry.isRegistered && entry.registeredUnder === lease;
}

function reasonToLeave(holder: bigint, hint: CloseReason | undefined): CloseReason {
  if (holder !== 0n) return { type: "moved", leaseId: holder };
  return hint ?? { type: "destroyed", reason: undefined };
}

function groupBy(entries: readonly Entry[], leases: (entry: Entry) => readonly bigint[]): Map<bigint, Entry[]> {
  const groups = new Map<bigint, Entry[]>();
  for (const entry of entries) {
    for (const lease of leases(entry)) {
      const group = groups.get(lease);
      if (group) group.push(entry);
      else groups.set(lease, [entry]);
    }
  }
  return groups;
}
