import { status as Code } from "@grpc/grpc-js";

import { ChangeQueue, type MirrorChange } from "./changes";
import { closedError, fromServiceError, protocolError, SessiondError } from "./errors";
import { SessionEventType } from "./generated/sessiond/v1/session_service";
import type { Logger } from "./logger";
import { Owners } from "./owners";
import type { Place } from "./place";
import { Placements } from "./placements";
import { ResumingStream } from "./resuming-stream";
import { SessionKey, type SessionId } from "./session";
import type { PackedRecord, PackedRecords } from "./stream-message";
import type { Target, Transport } from "./transport";
import type { PackedUpdate } from "./updates";
import { streamFilters, type SessionFilters } from "./watch";

/** What a mirror holds: everything, or the sessions that match every filter that is set. */
export interface MirrorOptions extends SessionFilters {
  /** How long the stream may be quiet before the server sends a heartbeat: 100 ms to 1 h, 5 s by default.
   * {@link Mirror.waitUntil} may wait for one. */
  readonly heartbeatMs?: number;
}

/** Where a session is. */
export interface Holder {
  readonly leaseId: bigint;
  /** By convention the address of the gateway. Undefined while it is unknown. */
  readonly owner: string | undefined;
}

/** What a mirror is made of. */
export interface MirrorParts {
  readonly target: Target;
  readonly transport: Transport;
  readonly timeoutMs: number;
  readonly logger: Logger;
}

/** Below the client's timeout, so that a wait for a place that a filter hides does not fail. */
const DEFAULT_HEARTBEAT_MS = 5000;
/** How much later than a heartbeat's interval a message may arrive while the stream counts as live. */
const HEARTBEAT_SLACK_MS = 1000;

interface PlaceWaiter {
  readonly places: readonly Place[];
  readonly settle: (error?: SessiondError) => void;
}

/**
 * A local copy of the registry, or of the sessions that match its filters, that answers without the network.
 *
 * It is empty until {@link synced}, and equals the registry from then on, except for what is under way. After a reset it
 * keeps the old contents until the new snapshot is complete, so its memory doubles for that time.
 */
export class Mirror {
  private readonly stream: ResumingStream;
  private readonly owners: Owners;
  private readonly leaseFilter: ReadonlySet<bigint> | undefined;
  private readonly waiters = new Set<PlaceWaiter>();
  private readonly queues = new Set<ChangeQueue>();
  private readonly reached = new Map<number, bigint>();
  private readonly firstSync: Promise<void>;
  private settleSync!: (error?: SessiondError) => void;
  private current: Placements;
  /** The snapshot that is being received. */
  private incoming: Placements | undefined;
  private registryId: string | undefined;
  private hasSynced = false;
  private isClosed = false;
  private isConnected = false;
  private heartbeatMs = 0;
  private lastMessage = -Infinity;

  /** @internal */
  constructor(
    private readonly parts: MirrorParts,
    options: MirrorOptions,
  ) {
    const { target, transport, timeoutMs, logger } = parts;
    const { heartbeatMs = DEFAULT_HEARTBEAT_MS } = options;
    const filters = streamFilters({ ...options, heartbeatMs, placements: true });
    this.stream = new ResumingStream(target, timeoutMs, filters, { $case: "snapshot", snapshot: true });
    this.leaseFilter = filters.leaseIds.length > 0 ? new Set(filters.leaseIds) : undefined;
    this.owners = new Owners(transport, logger);
    this.current = this.newPlacements();
    this.firstSync = new Promise((resolve, reject) => {
      this.settleSync = (error) => {
        if (error) reject(error);
        else resolve();
      };
    });
    this.firstSync.catch(() => undefined);
    void this.run();
  }

  /** The number of sessions. */
  get size(): number {
    return this.current.size;
  }

  /** The memory that the sessions take, in bytes. */
  get byteLength(): number {
    return this.current.byteLength + (this.incoming?.byteLength ?? 0);
  }

  /** Returns whether a session exists. */
  has({ authKeyId = 0n, sessionId }: SessionId): boolean {
    return this.current.has(authKeyId, sessionId);
  }

  /** Returns the gateway that holds a session. Undefined if there is no such session, or it is under no lease. */
  holderOf({ authKeyId = 0n, sessionId }: SessionId): Holder | undefined {
    const leaseId = this.current.get(authKeyId, sessionId);
    return leaseId ? { leaseId, owner: this.owners.get(leaseId) } : undefined;
  }

  /**
   * Iterates over the sessions and the lease each is under (0n: none). Do not await anything within the loop: sessions
   * that change meanwhile may be missed or come twice.
   */
  [Symbol.iterator](): IterableIterator<{ session: SessionKey; leaseId: bigint }> {
    return this.current[Symbol.iterator]();
  }

  /** Whether the mirror has been complete once. Until then it is empty. */
  get isSynced(): boolean {
    return this.hasSynced;
  }

  /**
   * Waits for the first snapshot. Fails if the mirror is closed, or with the first error that is not retryable, such as
   * a missing permission. The mirror tries again even then.
   */
  synced(): Promise<void> {
    return this.firstSync;
  }

  /**
   * Waits until the mirror has reached a place that a call returned with `withPlace`, and so reads one's own writes.
   *
   * Fails with FAILED_PRECONDITION if the registry is replaced by another one meanwhile, and with DEADLINE_EXCEEDED
   * after `timeoutMs`, by default the client's timeout.
   */
  waitUntil(place: Place | readonly Place[], timeoutMs = this.parts.timeoutMs): Promise<void> {
    const places: readonly Place[] = "partition" in place ? [place] : place;
    if (this.hasReached(places)) return Promise.resolve();
    if (this.isClosed) return Promise.reject(closedError("mirror"));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        waiter.settle(new SessiondError(Code.DEADLINE_EXCEEDED, "the mirror did not reach the place in time"));
      }, timeoutMs);
      const waiter: PlaceWaiter = {
        places,
        settle: (error) => {
          clearTimeout(timer);
          this.waiters.delete(waiter);
          if (error) reject(error);
          else resolve();
        },
      };
      this.waiters.add(waiter);
    });
  }

  /**
   * How old the contents may be, in milliseconds: 0 while the stream is live, and otherwise the time since its last
   * message. Infinity before the first snapshot.
   */
  get stalenessMs(): number {
    if (!this.hasSynced) return Infinity;
    const age = performance.now() - this.lastMessage;
    const isLive = this.isConnected && this.incoming === undefined && age <= this.heartbeatMs + HEARTBEAT_SLACK_MS;
    return isLive ? 0 : age;
  }

  /**
   * Returns the changes from now on, after they were applied. At most 65,536 wait for the reader; one that is slower
   * gets `resync` in their place. The first snapshot is a `resync` too; after a reset only differences are reported.
   */
  changes(): AsyncIterableIterator<MirrorChange> {
    const queue = new ChangeQueue((closed) => this.queues.delete(closed));
    if (this.isClosed) queue.close();
    else this.queues.add(queue);
    return queue;
  }

  /** Ends the mirror. Its contents stay as they are. */
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.isConnected = false;
    this.stream.close();
    this.owners.close();
    const error = closedError("mirror");
    this.settleSync(error);
    for (const waiter of [...this.waiters]) waiter.settle(error);
    for (const queue of [...this.queues]) queue.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private async run(): Promise<void> {
    for (;;) {
      try {
        const update = await this.stream.next();
        if (update === undefined) return;
        if (update.type !== "disconnected") this.lastMessage = performance.now();
        await this.apply(update);
      } catch (thrown) {
        const error = fromServiceError(thrown);
        this.isConnected = false;
        this.parts.logger.warn(`the stream of the mirror failed, retrying: error="${error.message}"`);
        this.settleSync(error);
      }
    }
  }

  private async apply(update: PackedUpdate): Promise<void> {
    switch (update.type) {
      case "subscribed":
        // A reset may follow, so its places are not reached yet. If none follows, the next message says how far it is.
        this.subscribed(update.registryId, update.heartbeatMs);
        break;
      case "reset":
        this.incoming = this.newPlacements();
        break;
      case "snapshot": {
        const { incoming } = this;
        update.sessions.forEachSession((record) => incoming?.put(record));
        await this.owners.lookUp();
        break;
      }
      case "synced":
        this.swap(update.sessionCount);
        this.reach(update.places);
        break;
      case "events":
        this.applyEvents(update.events);
        await this.owners.lookUp();
        if (this.incoming === undefined) this.reach(update.places);
        break;
      case "heartbeat":
        if (this.incoming === undefined) this.reach(update.places);
        break;
      case "disconnected":
        this.isConnected = false;
    }
  }

  private subscribed(registryId: string, heartbeatMs: number): void {
    this.isConnected = true;
    this.heartbeatMs = heartbeatMs;
    if (this.registryId === undefined) this.incoming = this.newPlacements();
    else if (this.registryId !== registryId) this.lostRegistry();
    this.registryId = registryId;
  }

  private lostRegistry(): void {
    this.reached.clear();
    const message = "the registry was lost and replaced by another one";
    const error = new SessiondError(Code.FAILED_PRECONDITION, message);
    for (const waiter of [...this.waiters]) waiter.settle(error);
  }

  private applyEvents(events: PackedRecords): void {
    const { incoming } = this;
    const isReported = incoming === undefined && this.queues.size > 0;
    const target = incoming ?? this.current;
    events.forEachEvent((record) => {
      const before = isReported ? target.getPacked(record) : undefined;
      if (this.isPresentAfter(record)) target.put(record);
      else target.remove(record);
      if (isReported) this.report(record.session, before, target.getPacked(record));
    });
  }

  /** Whether the mirror holds the session of an event afterwards. */
  private isPresentAfter(record: PackedRecord): boolean {
    switch (record.type) {
      case SessionEventType.CREATED:
      case SessionEventType.MOVED:
        return this.leaseFilter?.has(record.leaseId) ?? true;
      case SessionEventType.DESTROYED:
        return false;
      default:
        throw protocolError("an event of an unknown type");
    }
  }

  /** The snapshot is complete: it replaces the contents. */
  private swap(sessionCount: bigint): void {
    const { incoming: fresh, current: old } = this;
    if (fresh === undefined) return;
    if (BigInt(fresh.size) !== sessionCount) {
      this.parts.logger.warn(`the snapshot is incomplete: sessions=${fresh.size} expected=${sessionCount}`);
    }
    this.current = fresh;
    this.incoming = undefined;
    for (const leaseId of old.leases.keys()) if (!fresh.leases.has(leaseId)) this.owners.forget(leaseId);
    if (!this.hasSynced) {
      this.hasSynced = true;
      for (const queue of this.queues) queue.push({ type: "resync" });
    } else if (this.queues.size > 0) {
      this.reportDifferences(old, fresh);
    }
    this.settleSync();
  }

  private reportDifferences(old: Placements, fresh: Placements): void {
    for (const { session, leaseId } of old) {
      this.report(session, leaseId, fresh.get(session.authKeyId, session.sessionId));
    }
    for (const { session, leaseId } of fresh) {
      if (!old.has(session.authKeyId, session.sessionId)) this.report(session, undefined, leaseId);
    }
  }

  private report(session: SessionKey, before: bigint | undefined, after: bigint | undefined): void {
    if (before === after) return;
    const change = toChange(session, before, after);
    if (change) for (const queue of this.queues) queue.push(change);
  }

  private reach(places: readonly Place[]): void {
    for (const { partition, position } of places) {
      const reached = this.reached.get(partition);
      if (reached === undefined || reached < position) this.reached.set(partition, position);
    }
    if (this.waiters.size === 0) return;
    for (const waiter of [...this.waiters]) if (this.hasReached(waiter.places)) waiter.settle();
  }

  private hasReached(places: readonly Place[]): boolean {
    return places.every(({ partition, position }) => (this.reached.get(partition) ?? -1n) >= position);
  }

  private newPlacements(): Placements {
    return new Placements(
      (leaseId) => {
        this.owners.want(leaseId);
      },
      (leaseId) => {
        if (!this.isUsed(leaseId)) this.owners.forget(leaseId);
      },
    );
  }

  private isUsed(leaseId: bigint): boolean {
    return this.current.leases.has(leaseId) || (this.incoming?.leases.has(leaseId) ?? false);
  }
}

function toChange(session: SessionKey, before: bigint | undefined, after: bigint | undefined): MirrorChange | undefined {
  if (after === undefined) {
    return before === undefined ? undefined : { type: "destroyed", session, leaseId: before };
  }
  return before === undefined
    ? { type: "created", session, leaseId: after }
    : { type: "moved", session, leaseId: after, previousLeaseId: before };
}
