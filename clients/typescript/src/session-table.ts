/** The words of a slot: the two ids, and the value. */
const WORDS = 5;
const VALUE = 4;
const SMALLEST = 16;
/** How full the table may be, in quarters. */
const FULLEST = 3;

/** The first word of the slot at which a search for this key begins. */
function hash(authLow: number, authHigh: number, sessionLow: number, sessionHigh: number): number {
  let h = Math.imul(sessionLow ^ Math.imul(authLow, 0x85ebca6b), 0x9e3779b1);
  h = Math.imul((h >>> 15) ^ h ^ sessionHigh ^ Math.imul(authHigh, 0xc2b2ae35), 0x85ebca6b);
  h = Math.imul((h >>> 13) ^ h, 0xc2b2ae35);
  return (h >>> 16) ^ h;
}

/**
 * A map from sessions to numbers above 0, in one typed array: 20 bytes per slot, of which a quarter to five eighths is
 * free. Ids are given as words of 32 bits.
 *
 * It probes linearly, and fills the gaps of removed keys by moving the keys that follow.
 */
export class SessionTable {
  private slots = new Int32Array(SMALLEST * WORDS);
  private mask = SMALLEST - 1;
  private count = 0;

  get size(): number {
    return this.count;
  }

  /** The memory of the table. */
  get byteLength(): number {
    return this.slots.byteLength;
  }

  /** Returns the value of a key, or 0. */
  get(authLow: number, authHigh: number, sessionLow: number, sessionHigh: number): number {
    return this.slots[this.find(authLow, authHigh, sessionLow, sessionHigh) + VALUE] ?? 0;
  }

  /** Sets the value of a key. Returns the value it had, or 0. */
  set(authLow: number, authHigh: number, sessionLow: number, sessionHigh: number, value: number): number {
    const at = this.find(authLow, authHigh, sessionLow, sessionHigh);
    const { slots } = this;
    const before = slots[at + VALUE] ?? 0;
    slots[at + VALUE] = value;
    if (before === 0) {
      slots[at] = authLow;
      slots[at + 1] = authHigh;
      slots[at + 2] = sessionLow;
      slots[at + 3] = sessionHigh;
      this.count++;
      if (this.count * 4 > (this.mask + 1) * FULLEST) this.grow();
    }
    return before;
  }

  /** Removes a key. Returns the value it had, or 0. */
  delete(authLow: number, authHigh: number, sessionLow: number, sessionHigh: number): number {
    const at = this.find(authLow, authHigh, sessionLow, sessionHigh);
    const before = this.slots[at + VALUE] ?? 0;
    if (before !== 0) {
      this.count--;
      this.vacate(at / WORDS);
    }
    return before;
  }

  /** Iterates over the keys and their values. */
  *[Symbol.iterator](): Generator<[number, number, number, number, number], void, undefined> {
    const { slots } = this;
    for (let at = 0; at < slots.length; at += WORDS) {
      const value = slots[at + VALUE] ?? 0;
      if (value !== 0) yield [slots[at] ?? 0, slots[at + 1] ?? 0, slots[at + 2] ?? 0, slots[at + 3] ?? 0, value];
    }
  }

  /** Returns the first word of the key's slot, or of the empty one where it belongs. */
  private find(authLow: number, authHigh: number, sessionLow: number, sessionHigh: number): number {
    const { slots, mask } = this;
    let slot = hash(authLow, authHigh, sessionLow, sessionHigh) & mask;
    for (;;) {
      const at = slot * WORDS;
      if (
        slots[at + VALUE] === 0 ||
        (slots[at + 2] === sessionLow &&
          slots[at + 3] === sessionHigh &&
          slots[at] === authLow &&
          slots[at + 1] === authHigh)
      ) {
        return at;
      }
      slot = (slot + 1) & mask;
    }
  }

  private vacate(gap: number): void {
    const { slots, mask } = this;
    for (let slot = (gap + 1) & mask; ; slot = (slot + 1) & mask) {
      const at = slot * WORDS;
      if (slots[at + VALUE] === 0) break;
      const home = hash(slots[at] ?? 0, slots[at + 1] ?? 0, slots[at + 2] ?? 0, slots[at + 3] ?? 0) & mask;
      // A key may not move to before the slot at which a search for it begins.
      if (((slot - home) & mask) < ((slot - gap) & mask)) continue;
      slots.copyWithin(gap * WORDS, at, at + WORDS);
      gap = slot;
    }
    slots.fill(0, gap * WORDS, gap * WORDS + WORDS);
  }

  private grow(): void {
    const old = this.slots;
    this.mask = this.mask * 2 + 1;
    this.slots = new Int32Array((this.mask + 1) * WORDS);
    for (let at = 0; at < old.length; at += WORDS) {
      if (old[at + VALUE] === 0) continue;
      const to = this.find(old[at] ?? 0, old[at + 1] ?? 0, old[at + 2] ?? 0, old[at + 3] ?? 0);
      for (let word = 0; word < WORDS; word++) this.slots[to + word] = old[at + word] ?? 0;
    }
  }
}
