import assert from "node:assert/strict";
import { test } from "node:test";

import { SubscribeResponse, type Session, type SessionEvent } from "../src/generated/sessiond/v1/session_service";
import { decodeSubscribeResponse } from "../src/stream-message";

const IDS = [0n, 1n, -1n, 2n ** 31n, -(2n ** 31n), 2n ** 32n, 2n ** 63n - 1n, -(2n ** 63n)];
const LEASES = [0n, 1n, 2n ** 32n - 1n, 2n ** 53n - 1n, 2n ** 64n - 1n];

/** Every id with every lease. */
function combinations<T>(make: (id: bigint, lease: bigint, i: number) => T): T[] {
  return IDS.flatMap((id, i) => LEASES.map((lease, j) => make(id, lease, i + j)));
}

test("snapshots are decoded as the generated code does", () => {
  const sessions: Session[] = combinations((id, leaseId, i) => ({
    sessionId: id,
    authKeyId: IDS[i % IDS.length] ?? 0n,
    leaseId,
  }));
  const bytes = SubscribeResponse.encode({ body: { $case: "snapshot", snapshot: { sessions } }, cursor: "" }).finish();
  const { body, cursor } = decodeSubscribeResponse(bytes);
  assert.ok(body?.$case === "snapshot");
  const decoded: Session[] = [];
  body.sessions.forEachSession(({ session, leaseId }) =>
    decoded.push({ sessionId: session.sessionId, authKeyId: session.authKeyId, leaseId }),
  );
  assert.deepEqual(decoded, sessions);
  assert.equal(body.sessions.length, sessions.length);
  assert.equal(cursor, "");
});

test("events are decoded as the generated code does", () => {
  const events: SessionEvent[] = combinations((id, leaseId, i) => ({
    type: (i % 4) as SessionEvent["type"],
    sessionId: id,
    authKeyId: IDS[i % IDS.length] ?? 0n,
    reason: (i % 5) as SessionEvent["reason"],
    leaseId,
    previousLeaseId: LEASES[i % LEASES.length] ?? 0n,
  }));
  const place = { partition: 300, position: 2n ** 60n };
  const bytes = SubscribeResponse.encode({ body: { $case: "events", events: { events, place } }, cursor: "é1" }).finish();
  const { body, cursor } = decodeSubscribeResponse(bytes);
  assert.ok(body?.$case === "events");
  const decoded: SessionEvent[] = [];
  body.events.forEachEvent((record) => {
    const { type, reason, leaseId, previousLeaseId, session } = record;
    const { sessionId, authKeyId } = session;
    decoded.push({ type, sessionId, authKeyId, reason, leaseId, previousLeaseId });
  });
  assert.deepEqual(decoded, events);
  assert.deepEqual(body.place, place);
  assert.equal(cursor, "é1");
});

test("other messages are decoded by the generated code", () => {
  const synced = { sessionCount: 2n ** 40n, places: [{ partition: 1, position: 5n }] };
  const body: SubscribeResponse["body"] = { $case: "synced", synced };
  const bytes = SubscribeResponse.encode({ body, cursor: "c" }).finish();
  assert.deepEqual(decodeSubscribeResponse(bytes), { body, cursor: "c" });
  assert.deepEqual(decodeSubscribeResponse(new Uint8Array()), { body: undefined, cursor: "" });
});

test("fields of a newer server are skipped", () => {
  // An event (type CREATED, id 7) with unknown fields of every wire type, then unknown fields around it.
  const event = [0x08, 1, 0x11, 7, 0, 0, 0, 0, 0, 0, 0, 0x78, 0x96, 1, 0x81, 1, ...Array<number>(8).fill(9)];
  event.push(0x8a, 1, 2, 5, 5, 0x95, 1, 1, 2, 3, 4);
  const events = [0x0a, event.length, ...event, 0x78, 5];
  const { body } = decodeSubscribeResponse(Uint8Array.from([0x0a, events.length, ...events, 0x12, 1, 0x61]));
  assert.ok(body?.$case === "events");
  const ids: bigint[] = [];
  body.events.forEachEvent(({ session }) => ids.push(session.sessionId));
  assert.deepEqual(ids, [7n]);
});

test("a message that is cut short is an error", () => {
  const event: SessionEvent = {
    type: 1,
    sessionId: 7n,
    authKeyId: 0n,
    reason: 0,
    leaseId: 0n,
    previousLeaseId: 0n,
  };
  const body: SubscribeResponse["body"] = { $case: "events", events: { events: [event], place: undefined } };
  const bytes = SubscribeResponse.encode({ body, cursor: "" }).finish();
  assert.throws(() => decodeSubscribeResponse(bytes.subarray(0, bytes.length - 3)));
});
