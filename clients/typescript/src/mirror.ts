import { status as Code } from "@grpc/grpc-js";

import { ChangeQueue, type MirrorChange } from "./changes";
import { closedError, fromServiceError, protocolError, registryLost, SessiondError } from "./errors";
import { SessionEventType } from "./generated/sessiond/v1/session_service";
import type { Logger } from "./logger";
import { Owners } from "./owners";
import type { Place } from "./place";
import { Placements } from "./placements";
import { ResumingStream } from "./resuming-stream";
import { SessionKey, type SessionId } from "./session";
import type { PackedRecord, PackedRecords } from "./stream-message";
import type { Target, Transport } from "./transport";
import { destroyReason, type DestroyReason, type PackedUpdate } from "./updates";
import { streamFilters, type SessionFilters } from "./watch";

/** What a mirror holds: everything, or the sessions that match every filter that is set. */
export interface MirrorOptions extends SessionFilters {
  /** How long the stream may be quiet before the server sends a heartbeat: 100 ms to 1 h, 5 s by default.
   * {@link Mirror.waitUntil} may wait for one. */
  readonly heartbeatMs?: number;
}

/** Where a session is. */
export interface MirrorHolder {
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
  /** Each checks whether what it waits for has happened. */
  private readonly waits = new Set<() => void>();
  private readonly queues = new Set<ChangeQueue>();
  private readonly reached = new Map<number, bigint>();
  /** Grows when positions lose their meaning, because the registry was replaced or lost changes. */
  private epoch = 0;
  private current: Placements;
  /** The snapshot that is being received. */
  private incoming: Placements | undefined;
  private registryId: string | undefined;
  /** Whether the open stream comes from another registry than the stream before. */
  private isOtherRegistry = false;
  private hasSynced = false;
  private isClosed = false;
  /** Whether the stream is open, and the contents follow it. */
  private isLive = false;
  /** Why the stream cannot be opened, if a retry does not help. */
  private failure: SessiondError | undefined;
  private heartbeatMs = 0;
  /** When the contents last equaled the registry, as far as the stream has shown. */
  private exactAt = performance.now();

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
  holderOf({ authKeyId = 0n, sessionId }: SessionId): MirrorHolder | undefined {
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
   * Waits for the first snapshot. Fails if the mirror is closed, or with an error that is not retryable, such as a missing
   * permission. The mirror tries again even then.
   */
  synced(): Promise<void> {
    return this.until(() => this.hasSynced);
  }

  /**
   * Waits until the mirror has reached a place that a call returned with `withPlace`, and so reads one's own writes.
   *
   * Fails with DEADLINE_EXCEEDED after `timeoutMs`, by default the client's timeout, and with the reason REGISTRY_LOST if
   * the registry is replaced or loses changes meanwhile, so that the place means nothing. Otherwise like {@link synced}.
   */
  waitUntil(place: Place | readonly Place[], timeoutMs = this.parts.timeoutMs): Promise<void> {
    const places: readonly Place[] = "partition" in place ? [place] : place;
    const { epoch } = this;
    const hasReached = () => {
      if (this.epoch !== epoch) throw registryLost();
      return this.hasReached(places);
    };
    return this.until(hasReached, timeoutMs);
  }

  /**
   * For how long the mirror may have missed changes, in milliseconds: 0 while its stream is open and not silent, and
   * otherwise the time since the contents last followed it, or since the mirror was created.
   */
  get stalenessMs(): number {
    const age = performance.now() - this.exactAt;
    return this.isLive && age <= this.heartbeatMs + HEARTBEAT_SLACK_MS ? 0 : age;
  }

  /**
   * Returns the changes from now on, after they were applied. When a new snapshot replaces the contents, the differences
   * are reported as changes. The first snapshot is reported in the same way, as changes of an empty mirror. At most 65,536
   * changes wait for the reader; one that is slower gets `resync` in their place.
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
    this.isLive = false;
    this.stream.close();
    this.owners.close();
    this.notify();
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
        await this.apply(update);
      } catch (thrown) {
        const error = fromServiceError(thrown);
        this.isLive = false;
        this.failure = error;
        this.parts.logger.warn(`the stream of the mirror failed, retrying: error="${error.message}"`);
      }
      this.notify();
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
        this.isLive = false;
        // A registry that was rolled back may keep its id and use the same positions again.
        if (!this.isOtherRegistry && ["cursor-foreign", "storage-restarted"].includes(update.reason)) this.losePlaces();
        break;
      case "snapshot": {
        const { incoming } = this;
        update.sessions.forEachSession((record) => incoming?.put(record));
        await this.owners.lookUp();
        break;
      }
      case "synced":
        this.swap(update.sessionCount);
        this.reach(update.places, true);
        break;
      case "events":
        this.applyEvents(update.events);
        await this.owners.lookUp();
        // A stream that has resumed sends a heartbeat once it has caught up.
        if (this.incoming === undefined) this.reach(update.places, this.isLive);
        break;
      case "heartbeat":
        if (this.incoming === undefined) this.reach(update.places, true);
        break;
      case "disconnected":
        this.isLive = false;
    }
  }

  private subscribed(registryId: string, heartbeatMs: number): void {
    this.failure = undefined;
    this.heartbeatMs = heartbeatMs;
    if (this.registryId === undefined) this.incoming = this.newPlacements();
    this.isOtherRegistry = this.registryId !== undefined && this.registryId !== registryId;
    if (this.isOtherRegistry) this.losePlaces();
    this.registryId = registryId;
  }

  private losePlaces(): void {
    this.reached.clear();
    this.epoch++;
  }

  /** Waits until `isDone` returns true or throws. */
  private until(isDone: () => boolean, timeoutMs?: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = () => {
        try {
          if (!isDone()) {
            const error = this.isClosed ? closedError("mirror") : this.failure;
            if (error === undefined) return;
            throw error;
          }
          resolve();
        } catch (error) {
          reject(fromServiceError(error));
        }
        clearTimeout(timer);
        this.waits.delete(check);
      };
      const expire = () => {
        this.waits.delete(check);
        reject(new SessiondError(Code.DEADLINE_EXCEEDED, "the mirror did not reach the place in time"));
      };
      const timer = timeoutMs === undefined ? undefined : setTimeout(expire, timeoutMs);
      this.waits.add(check);
      check();
    });
  }

  /** Lets everyone who waits look again. */
  private notify(): void {
    for (const check of [...this.waits]) check();
  }

  private applyEvents(events: PackedRecords): void {
    const { incoming } = this;
    const isReported = incoming === undefined && this.queues.size > 0;
    const target = incoming ?? this.current;
    events.forEachEvent((record) => {
      const before = isReported ? target.getPacked(record) : undefined;
      if (this.isPresentAfter(record)) target.put(record);
      else target.remove(record);
      if (!isReported) return;
      const reason = record.type === SessionEventType.DESTROYED ? destroyReason(record.reason) : undefined;
      this.report(record.session, before, target.getPacked(record), reason);
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
    this.hasSynced = true;
    if (this.queues.size > 0) this.reportDifferences(old, fresh);
  }

  private reportDifferences(old: Placements, fresh: Placements): void {
    for (const { session, leaseId } of old) {
      this.report(session, leaseId, fresh.get(session.authKeyId, session.sessionId));
    }
    for (const { session, leaseId } of fresh) {
      if (!old.has(session.authKeyId, session.sessionId)) this.report(session, undefined, leaseId);
    }
  }

  private report(
    session: SessionKey,
    before: bigint | undefined,
    after: bigint | undefined,
    reason?: DestroyReason,
  ): void {
    if (before === after) return;
    const change = toChange(session, before, after, reason);
    if (change) for (const queue of this.queues) queue.push(change);
  }

  private reach(places: readonly Place[], isCurrent: boolean): void {
    this.isLive = isCurrent;
    if (isCurrent) this.exactAt = performance.now();
    for (const { partition, position } of places) {
      const reached = this.reached.get(partition);
      if (reached === undefined || reached < position) this.reached.set(partition, position);
    }
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

function toChange(
  session: SessionKey,
  before: bigint | undefined,
  after: bigint | undefined,
  reason: DestroyReason | undefined,
): MirrorChange | undefined {
  if (after === undefined) {
    return before === undefined ? undefined : { type: "destroyed", session, leaseId: before, reason };
  }
  return before === undefined
    ? { type: "created", session, leaseId: after }
    : { type: "moved", session, leaseId: after, previousLeaseId: before };
}
