/** Numbers leases, so that a table can store them in one word. 1 stands for no lease. */
export class LeaseRoster {
  private readonly indexes = new Map<bigint, number>();
  private readonly ids: bigint[] = [0n, 0n];
  private readonly counts: number[] = [0, 0];
  private readonly free: number[] = [];
  private lastLow = 0;
  private lastHigh = 0;
  private lastIndex = 1;

  /** `onNew` gets each lease that gets its first session, and `onUnused` each that has lost its last one. */
  constructor(
    private readonly onNew: (leaseId: bigint) => void,
    private readonly onUnused: (leaseId: bigint) => void,
  ) {}

  /** Returns the number of a lease, for one more session. */
  add(low: number, high: number): number {
    const index = this.indexOf(low, high);
    this.counts[index] = (this.counts[index] ?? 0) + 1;
    return index;
  }

  /** One session less is under the lease with this number. */
  remove(index: number): void {
    const count = (this.counts[index] ?? 0) - 1;
    this.counts[index] = count;
    if (count > 0 || index === 1) return;
    const leaseId = this.id(index);
    this.indexes.delete(leaseId);
    this.onUnused(leaseId);
    this.free.push(index);
    if (this.lastIndex === index) {
      this.lastLow = this.lastHigh = 0;
      this.lastIndex = 1;
    }
  }

  /** Returns the lease with this number; 0n for none. */
  id(index: number): bigint {
    return this.ids[index] ?? 0n;
  }

  has(leaseId: bigint): boolean {
    return this.indexes.has(leaseId);
  }

  keys(): IterableIterator<bigint> {
    return this.indexes.keys();
  }

  private indexOf(low: number, high: number): number {
    // Sessions that follow each other are mostly under the same lease.
    if (low === this.lastLow && high === this.lastHigh) return this.lastIndex;
    const leaseId = (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
    let index = leaseId === 0n ? 1 : this.indexes.get(leaseId);
    if (index === undefined) {
      index = this.free.pop() ?? this.ids.length;
      this.ids[index] = leaseId;
      this.counts[index] = 0;
      this.indexes.set(leaseId, index);
      this.onNew(leaseId);
    }
    this.lastLow = low;
    this.lastHigh = high;
    this.lastIndex = index;
    return index;
  }
}
