import { Entry, type Book } from "./book";
import type { CloseReason } from "./connection";
import { fromServiceError } from "./errors";
import type { Logger } from "./logger";
import { ResumingStream } from "./resuming-stream";
import type { SessionKey } from "./session";
import type { PackedRecords } from "./stream-message";
import type { Target } from "./transport";
import { toEvent, type PackedUpdate, type SessionEvent } from "./updates";
import { streamFilters } from "./watch";

/** The stream of a gateway's own lease. It gives hints: the registry decides. */
export class LeaseStream {
  private readonly stream: ResumingStream;
  /** The sessions of the snapshot that is being received. */
  private snapshot: Set<string> | undefined;
  /** The last registration in the book when that snapshot began. */
  private begun = 0;

  constructor(
    target: Target,
    timeoutMs: number,
    heartbeatMs: number,
    private readonly leaseId: bigint,
    private readonly book: Book,
    private readonly logger: Logger,
  ) {
    const filters = streamFilters({ leaseIds: [leaseId], placements: true, heartbeatMs });
    this.stream = new ResumingStream(target, timeoutMs, filters, { $case: "snapshot", snapshot: true });
    void this.run();
  }

  close(): void {
    this.stream.close();
  }

  private async run(): Promise<void> {
    let isFirst = true;
    for (;;) {
      try {
        const update = await this.stream.next();
        if (update === undefined) return;
        if (update.type === "reset" || (isFirst && update.type === "subscribed")) {
          isFirst = false;
          this.snapshot = new Set();
          this.begun = this.book.now;
        } else {
          this.apply(update);
        }
      } catch (thrown) {
        const { message } = fromServiceError(thrown);
        this.logger.warn(`the stream of the lease failed, retrying: lease_id=${this.leaseId} error="${message}"`);
      }
    }
  }

  private apply(update: PackedUpdate): void {
    switch (update.type) {
      case "snapshot":
        update.sessions.forEachSession(({ session }) => {
          this.snapshot?.add(session.toString());
          this.hasAppeared(session);
        });
        break;
      case "events":
        for (const [name, event] of lastEvents(update.events)) this.hint(name, event);
        break;
      case "synced":
        this.compare();
        break;
      default:
    }
  }

  private hint(name: string, event: SessionEvent): void {
    if (event.type !== "destroyed" && event.leaseId === this.leaseId) {
      this.snapshot?.add(name);
      this.hasAppeared(event.session);
      return;
    }
    this.snapshot?.delete(name);
    if (event.type === "destroyed") {
      const { reason } = event;
      if (reason === "released") this.wasReleased(event.session);
      else this.hasLeft(event.session, { type: "destroyed", reason });
    } else {
      this.hasLeft(event.session, { type: "moved", leaseId: event.leaseId });
    }
  }

  /** A session is under the lease. If it has no connection, it must go. */
  private hasAppeared(session: SessionKey): void {
    const known = this.book.get(session);
    if (known && (known.seats.length > 0 || this.book.isDirty(known))) return;
    const entry = known ?? this.book.open(session);
    entry.suspect(this.leaseId);
    this.book.markDirty(entry);
  }

  /**
   * Only this gateway releases its sessions. If the session has a connection, a delayed call has destroyed it: it is
   * registered again.
   */
  private wasReleased(session: SessionKey): void {
    const entry = this.book.get(session);
    if (entry?.registeredUnder !== this.leaseId || !entry.isRegistered) return;
    entry.claim ??= 0n;
    this.book.markDirty(entry);
  }

  private hasLeft(session: SessionKey, reason: CloseReason): void {
    const entry = this.book.get(session);
    if (entry) this.suspectLoss(entry, reason);
  }

  private suspectLoss(entry: Entry, reason: CloseReason): void {
    if (entry.registeredUnder !== this.leaseId || !entry.isRegistered) return;
    entry.hasLeft = reason;
    this.book.markDirty(entry);
  }

  /** The snapshot is complete: sessions that were registered before it and are missing have left. */
  private compare(): void {
    const { snapshot } = this;
    if (snapshot === undefined) return;
    this.snapshot = undefined;
    for (const entry of this.book) {
      if (entry.registeredAt > this.begun || snapshot.has(entry.key.toString())) continue;
      this.suspectLoss(entry, { type: "destroyed", reason: undefined });
    }
  }
}

/** Within one message, only the last event of each session matters. */
function lastEvents(records: PackedRecords): Map<string, SessionEvent> {
  const last = new Map<string, SessionEvent>();
  records.forEachEvent((record) => {
    const event = toEvent(record);
    last.set(event.session.toString(), event);
  });
  return last;
}
