import { LeaseRoster } from "./lease-roster";
import { SessionKey } from "./session";
import { SessionTable } from "./session-table";
import type { PackedRecord } from "./stream-message";

const ids = new BigInt64Array(2);
const words = new Int32Array(ids.buffer);

/** The sessions of a registry, and the lease each is under. */
export class Placements {
  private readonly table = new SessionTable();
  readonly leases: LeaseRoster;

  constructor(onNewLease: (leaseId: bigint) => void, onUnusedLease: (leaseId: bigint) => void) {
    this.leases = new LeaseRoster(onNewLease, onUnusedLease);
  }

  get size(): number {
    return this.table.size;
  }

  get byteLength(): number {
    return this.table.byteLength;
  }

  /** Returns the lease of a session, 0n if it is under none, or undefined if there is no such session. */
  get(authKeyId: bigint, sessionId: bigint): bigint | undefined {
    const index = this.find(authKeyId, sessionId);
    return index === 0 ? undefined : this.leases.id(index);
  }

  /** Like {@link get}, for the session of `record`. */
  getPacked({ authLow, authHigh, sessionLow, sessionHigh }: PackedRecord): bigint | undefined {
    const index = this.table.get(authLow, authHigh, sessionLow, sessionHigh);
    return index === 0 ? undefined : this.leases.id(index);
  }

  has(authKeyId: bigint, sessionId: bigint): boolean {
    return this.find(authKeyId, sessionId) !== 0;
  }

  /** Puts the session of `record` under its lease. */
  put(record: PackedRecord): void {
    const { authLow, authHigh, sessionLow, sessionHigh } = record;
    const index = this.leases.add(record.leaseLow, record.leaseHigh);
    const before = this.table.set(authLow, authHigh, sessionLow, sessionHigh, index);
    if (before !== 0) this.leases.remove(before);
  }

  /** Removes the session of `record`. */
  remove({ authLow, authHigh, sessionLow, sessionHigh }: PackedRecord): void {
    const before = this.table.delete(authLow, authHigh, sessionLow, sessionHigh);
    if (before !== 0) this.leases.remove(before);
  }

  /** Iterates over the sessions. Sessions that change meanwhile may be missed or come twice. */
  *[Symbol.iterator](): Generator<{ session: SessionKey; leaseId: bigint }, void, undefined> {
    for (const [authLow, authHigh, sessionLow, sessionHigh, index] of this.table) {
      words[0] = authLow;
      words[1] = authHigh;
      words[2] = sessionLow;
      words[3] = sessionHigh;
      yield { session: new SessionKey(ids[0] ?? 0n, ids[1] ?? 0n), leaseId: this.leases.id(index) };
    }
  }

  private find(authKeyId: bigint, sessionId: bigint): number {
    ids[0] = authKeyId;
    ids[1] = sessionId;
    return this.table.get(words[0] ?? 0, words[1] ?? 0, words[2] ?? 0, words[3] ?? 0);
  }
}
