// Decodes the messages of a stream. Snapshots and events come in the thousands, so their sessions are decoded by hand
// and only when they are read. A test compares the result with the generated code.
import {
  DestroyReason,
  Place,
  SessionEventType,
  SubscribeResponse,
} from "./generated/sessiond/v1/session_service";
import { SessionKey } from "./session";

/** A message of a stream: the generated type, but with packed sessions. */
export interface StreamMessage {
  readonly body: PackedBody | Exclude<SubscribeResponse["body"], { $case: "events" | "snapshot" } | undefined> | undefined;
  readonly cursor: string;
}

export type PackedBody =
  | { readonly $case: "snapshot"; readonly sessions: PackedRecords }
  | { readonly $case: "events"; readonly events: PackedRecords; readonly place: Place | undefined };

const TAG_EVENTS = 0x0a;
const TAG_CURSOR = 0x12;
const TAG_SNAPSHOT = 0x22;

const RECORD_TAG = 0x0a;

/** Decodes a SubscribeResponse. */
export function decodeSubscribeResponse(bytes: Uint8Array): StreamMessage {
  const reader = new Reader(bytes);
  let cursor = "";
  let body: PackedBody | undefined;
  while (reader.hasMore()) {
    const tag = reader.varint();
    if (tag === TAG_EVENTS) {
      body = decodeEvents(reader.slice());
    } else if (tag === TAG_SNAPSHOT) {
      body = { $case: "snapshot", sessions: decodeRecords(reader.slice(), undefined) };
    } else if (tag === TAG_CURSOR) {
      cursor = reader.text();
    } else {
      return decodeOther(bytes);
    }
  }
  return { body, cursor };
}

/** Everything but events and snapshots is rare. */
function decodeOther(bytes: Uint8Array): StreamMessage {
  const { body, cursor } = SubscribeResponse.decode(bytes);
  if (body?.$case === "events" || body?.$case === "snapshot") throw new Error("a message with two bodies");
  return { body, cursor };
}

function decodeEvents(bytes: Uint8Array): PackedBody {
  const places: Uint8Array[] = [];
  const events = decodeRecords(bytes, places);
  const place = places.at(-1);
  return { $case: "events", events, place: place && Place.decode(place) };
}

/** Splits a Snapshot or SessionEvents into its records. Field 2 of SessionEvents is its place. */
function decodeRecords(bytes: Uint8Array, places: Uint8Array[] | undefined): PackedRecords {
  const reader = new Reader(bytes);
  let count = 0;
  while (reader.hasMore()) {
    const tag = reader.varint();
    if (tag === RECORD_TAG) {
      reader.skipBytes();
      count++;
    } else if (tag === 0x12 && places) {
      places.push(reader.slice());
    } else {
      reader.skip(tag);
    }
  }
  return new PackedRecords(bytes, count);
}

/** The sessions of a snapshot, or the events of a message, still encoded. */
export class PackedRecords {
  constructor(
    private readonly bytes: Uint8Array,
    readonly length: number,
  ) {}

  /** Calls `each` for every session of a snapshot. It gets the same object each time. */
  forEachSession(each: (record: PackedRecord) => void): void {
    this.forEach((record, reader) => {
      record.readSession(reader);
      each(record);
    });
  }

  /** Calls `each` for every event. It gets the same object each time. */
  forEachEvent(each: (record: PackedRecord) => void): void {
    this.forEach((record, reader) => {
      record.readEvent(reader);
      each(record);
    });
  }

  private forEach(each: (record: PackedRecord, reader: Reader) => void): void {
    const reader = new Reader(this.bytes);
    const record = new PackedRecord();
    while (reader.hasMore()) {
      const tag = reader.varint();
      if (tag === RECORD_TAG) each(record, reader);
      else reader.skip(tag);
    }
  }
}

/** One session or event. Ids are words of 32 bits, which a Mirror stores as they are. */
export class PackedRecord {
  type: SessionEventType = 0;
  reason: DestroyReason = 0;
  sessionLow = 0;
  sessionHigh = 0;
  authLow = 0;
  authHigh = 0;
  leaseLow = 0;
  leaseHigh = 0;
  previousLow = 0;
  previousHigh = 0;

  get session(): SessionKey {
    return new SessionKey(signed(this.authLow, this.authHigh), signed(this.sessionLow, this.sessionHigh));
  }

  get leaseId(): bigint {
    return unsigned(this.leaseLow, this.leaseHigh);
  }

  get previousLeaseId(): bigint {
    return unsigned(this.previousLow, this.previousHigh);
  }

  /** Reads a Session. */
  readSession(reader: Reader): void {
    this.clear();
    const end = reader.varint() + reader.at;
    while (reader.at < end) {
      const tag = reader.varint();
      switch (tag) {
        case 0x09:
          this.sessionLow = reader.word();
          this.sessionHigh = reader.word();
          break;
        case 0x11:
          this.authLow = reader.word();
          this.authHigh = reader.word();
          break;
        case 0x19:
          this.leaseLow = reader.word();
          this.leaseHigh = reader.word();
          break;
        default:
          reader.skip(tag);
      }
    }
  }

  /** Reads a SessionEvent. */
  readEvent(reader: Reader): void {
    this.clear();
    const end = reader.varint() + reader.at;
    while (reader.at < end) {
      const tag = reader.varint();
      switch (tag) {
        case 0x08:
          this.type = reader.varint() as SessionEventType;
          break;
        case 0x11:
          this.sessionLow = reader.word();
          this.sessionHigh = reader.word();
          break;
        case 0x19:
          this.authLow = reader.word();
          this.authHigh = reader.word();
          break;
        case 0x20:
          this.reason = reader.varint() as DestroyReason;
          break;
        case 0x29:
          this.leaseLow = reader.word();
          this.leaseHigh = reader.word();
          break;
        case 0x31:
          this.previousLow = reader.word();
          this.previousHigh = reader.word();
          break;
        default:
          reader.skip(tag);
      }
    }
  }

  private clear(): void {
    this.type = 0;
    this.reason = 0;
    this.sessionLow = this.sessionHigh = 0;
    this.authLow = this.authHigh = 0;
    this.leaseLow = this.leaseHigh = 0;
    this.previousLow = this.previousHigh = 0;
  }
}

function signed(low: number, high: number): bigint {
  return (BigInt(high) << 32n) | BigInt(low >>> 0);
}

function unsigned(low: number, high: number): bigint {
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}

/** Reads protobuf's wire format. */
class Reader {
  at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  hasMore(): boolean {
    return this.at < this.bytes.length;
  }

  /** Reads a number below 2^53, such as a tag, a length or an enum. */
  varint(): number {
    let value = 0;
    let factor = 1;
    for (;;) {
      const byte = this.view.getUint8(this.at++);
      if (byte < 0x80) return value + byte * factor;
      value += (byte - 0x80) * factor;
      factor *= 0x80;
    }
  }

  /** Reads 32 bits as a signed number. */
  word(): number {
    const word = this.view.getInt32(this.at, true);
    this.at += 4;
    return word;
  }

  /** Reads a length and returns that many bytes without copying them. */
  slice(): Uint8Array {
    const start = this.skipBytes();
    return this.bytes.subarray(start, this.at);
  }

  text(): string {
    const { buffer, byteOffset, byteLength } = this.slice();
    return Buffer.from(buffer, byteOffset, byteLength).toString("utf8");
  }

  /** Skips a length and that many bytes. Returns where the bytes begin. */
  skipBytes(): number {
    const length = this.varint();
    const start = this.at;
    if (length > this.bytes.length - start) throw new RangeError("a field is longer than its message");
    this.at += length;
    return start;
  }

  /** Skips the value of a field that this version does not know. */
  skip(tag: number): void {
    switch (tag % 8) {
      case 0:
        this.varint();
        break;
      case 1:
        this.at += 8;
        break;
      case 2:
        this.skipBytes();
        break;
      case 5:
        this.at += 4;
        break;
      default:
        throw new RangeError(`unknown wire type ${tag % 8}`);
    }
  }
}
