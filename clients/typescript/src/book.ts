import { SessionElsewhereError, type SessiondError } from "./errors";
import type { CloseReason, Connection } from "./connection";
import type { SessionKey } from "./session";

/**
 * A connection in the book of a gateway.
 *
 * - `opening`: the session is yet to be looked up.
 * - `claiming`: the claim of its entry is fixed. Retries never look up again, so they cannot steal the session.
 * - `registered`: the session was registered for it.
 */
export interface Seat {
  readonly connection: Connection;
  readonly openedAt: number;
  state: "opening" | "claiming" | "registered";
  readonly settle: (error: SessiondError | undefined) => void;
}

/** What a gateway knows about one session. */
export class Entry {
  seats: Seat[] = [];
  /** The lease the session is registered under; 0n if it is not. */
  registeredUnder = 0n;
  /** When the session was registered, as a number of {@link Book.now}. */
  registeredAt = 0;
  /** The leases the session may be under: those it is registered under, or a create was sent for. */
  under: bigint[] = [];
  /** The lease to take the session from (0n: none), once that is fixed. */
  claim: bigint | undefined;
  /** The stream said that the session has left, for this reason. The registry decides. */
  hasLeft: CloseReason | undefined;

  constructor(readonly key: SessionKey) {}

  get isRegistered(): boolean {
    return this.seats.some(({ state }) => state === "registered");
  }

  get needsLookup(): boolean {
    return this.hasLeft !== undefined || this.seats.some(({ state }) => state === "opening");
  }

  /** The session may be under `lease`. */
  suspect(lease: bigint): void {
    if (!this.under.includes(lease)) this.under.push(lease);
  }

  /** The session is not under `lease`. */
  clear(lease: bigint): void {
    this.under = this.under.filter((other) => other !== lease);
    if (this.registeredUnder === lease) this.registeredUnder = 0n;
  }

  /** The registry says that the session is under `lease`, ours, and so it is for all connections that asked. */
  register(lease: bigint, now: number, isIncluded: (seat: Seat) => boolean): void {
    this.registeredUnder = lease;
    this.registeredAt = now;
    this.under = [lease];
    this.claim = undefined;
    this.hasLeft = undefined;
    for (const seat of this.seats) {
      if (seat.state === "registered" || !isIncluded(seat)) continue;
      seat.state = "registered";
      seat.settle(undefined);
    }
  }

  /** Closes the connections that were registered. */
  leave(reason: CloseReason): void {
    this.hasLeft = undefined;
    this.registeredUnder = 0n;
    const left = this.seats.filter(({ state }) => state === "registered");
    this.seats = this.seats.filter(({ state }) => state !== "registered");
    for (const { connection } of left) connection.end(reason);
  }

  /** Fails the connections whose claim was refused: another lease holds the session. */
  refuse(holder: bigint): void {
    this.fail(new SessionElsewhereError(holder));
    this.leave({ type: "moved", leaseId: holder });
  }

  /** Fails the connections whose claim failed for good. */
  fail(error: SessiondError): void {
    this.claim = undefined;
    const failed = this.seats.filter(({ state }) => state === "claiming");
    this.seats = this.seats.filter(({ state }) => state !== "claiming");
    for (const { connection, settle } of failed) {
      connection.end({ type: "closed" });
      settle(error);
    }
  }
}

/** The sessions of a gateway, and which of them need calls. */
export class Book {
  private readonly entries = new Map<string, Entry>();
  private readonly dirty = new Set<Entry>();
  private clock = 0;

  constructor(private readonly onDirty: () => void) {}

  /** A number that grows with each registration. */
  get now(): number {
    return this.clock;
  }

  tick(): number {
    return ++this.clock;
  }

  get size(): number {
    return this.entries.size;
  }

  get hasDirty(): boolean {
    return this.dirty.size > 0;
  }

  [Symbol.iterator](): IterableIterator<Entry> {
    return this.entries.values();
  }

  get(key: SessionKey): Entry | undefined {
    return this.entries.get(key.toString());
  }

  open(key: SessionKey): Entry {
    const name = key.toString();
    let entry = this.entries.get(name);
    if (entry === undefined) {
      entry = new Entry(key);
      this.entries.set(name, entry);
    }
    return entry;
  }

  markDirty(entry: Entry): void {
    this.dirty.add(entry);
    this.onDirty();
  }

  isDirty(entry: Entry): boolean {
    return this.dirty.has(entry);
  }

  /** Takes up to `limit` sessions that need calls. */
  takeDirty(limit: number): Entry[] {
    const taken: Entry[] = [];
    for (const entry of this.dirty) {
      if (taken.length === limit) break;
      taken.push(entry);
      this.dirty.delete(entry);
    }
    return taken;
  }

  /** Forgets an entry that holds nothing. */
  tidy(entry: Entry): void {
    if (entry.seats.length === 0 && entry.under.length === 0 && !this.dirty.has(entry)) {
      this.entries.delete(entry.key.toString());
    }
  }
}
