import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, SessionKey } from "../src";
import { Server } from "./server";

const MIN = -(2n ** 63n);
const MAX = 2n ** 63n - 1n;

test("unsigned ids become the signed ids with the same bits", () => {
  assert.equal(new SessionKey(2n ** 64n - 1n, 2n ** 63n).authKeyId, -1n);
  assert.equal(new SessionKey(0n, 2n ** 63n).sessionId, MIN);
  assert.ok(new SessionKey(2n ** 64n - 1n, 1n).equals({ authKeyId: -1n, sessionId: 1n }));
});

test("ids that do not fit into 64 bits are refused", () => {
  for (const id of [2n ** 64n, MIN - 1n]) {
    assert.throws(() => new SessionKey(0n, id), RangeError);
    assert.throws(() => new SessionKey(id, 0n), RangeError);
  }
  // @ts-expect-error A number would be rounded.
  assert.throws(() => new SessionKey(0n, 42), TypeError);
});

test("every 64-bit id makes the round trip", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const ids = [0n, 1n, -1n, MIN, MAX, 2n ** 53n + 1n, -(2n ** 53n) - 1n];
  const sessions = ids.flatMap((authKeyId) => ids.map((sessionId) => ({ authKeyId, sessionId })));
  const { created } = await client.batchCreate(sessions);
  assert.ok(created.every(Boolean));
  for (const session of sessions) assert.equal(await client.has(session), true);
  assert.equal(await client.has({ authKeyId: 0n, sessionId: 2n ** 63n }), true);

  const seen = new Set<string>();
  for await (const update of client.watch({ snapshot: true })) {
    if (update.type === "snapshot") for (const { session } of update.sessions) seen.add(session.toString());
    if (update.type === "synced") break;
  }
  assert.deepEqual(seen, new Set(sessions.map((session) => SessionKey.of(session).toString())));
});
