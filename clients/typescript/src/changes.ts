import type { SessionKey } from "./session";
import type { DestroyReason } from "./updates";

/**
 * A change of a mirror.
 *
 * - `destroyed`: `leaseId` is the lease before. The `reason` is undefined if the session has left the leases of the mirror,
 *   or was destroyed while the mirror could not follow the registry.
 * - `resync`: the reader was too slow, and changes were left out. Read the mirror again.
 */
export type MirrorChange =
  | { readonly type: "created"; readonly session: SessionKey; readonly leaseId: bigint }
  | { readonly type: "moved"; readonly session: SessionKey; readonly leaseId: bigint; readonly previousLeaseId: bigint }
  | {
      readonly type: "destroyed";
      readonly session: SessionKey;
      readonly leaseId: bigint;
      readonly reason: DestroyReason | undefined;
    }
  | { readonly type: "resync" };

/** The most changes that wait for a reader. */
const LIMIT = 65_536;

/** The changes that one reader has not read yet. */
export class ChangeQueue implements AsyncIterableIterator<MirrorChange> {
  private queue: MirrorChange[] = [];
  private head = 0;
  private isClosed = false;
  private readonly readers: ((result: IteratorResult<MirrorChange, undefined>) => void)[] = [];

  constructor(private readonly onClose: (queue: ChangeQueue) => void) {}

  /** Tells the reader of a change. A reader that is too slow is told to read the mirror instead. */
  push(change: MirrorChange): void {
    const reader = this.readers.shift();
    if (reader) {
      reader({ done: false, value: change });
    } else if (change.type === "resync" || this.queue.length - this.head >= LIMIT) {
      // The mirror will be read after this, so everything before is out of date.
      this.queue = [{ type: "resync" }];
      this.head = 0;
    } else {
      this.queue.push(change);
    }
  }

  next(): Promise<IteratorResult<MirrorChange, undefined>> {
    const change = this.queue[this.head];
    if (change !== undefined) {
      this.head++;
      if (this.head === this.queue.length) {
        this.queue = [];
        this.head = 0;
      }
      return Promise.resolve({ done: false, value: change });
    }
    if (this.isClosed) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => this.readers.push(resolve));
  }

  /** Ends the iteration. */
  close(): void {
    this.isClosed = true;
    this.onClose(this);
    for (const reader of this.readers.splice(0)) reader({ done: true, value: undefined });
  }

  return(): Promise<IteratorResult<MirrorChange, undefined>> {
    this.queue = [];
    this.head = 0;
    this.close();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
