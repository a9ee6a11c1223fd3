import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { status } from "@grpc/grpc-js";

import { Client, type SessionEvent, type Watch, type WatchUpdate } from "../src";
import { cleanUp } from "./cleanup";
import { eventually, within } from "./eventually";
import { Proxy } from "./proxy";
import { Server, temporaryFolder } from "./server";

async function start(t: TestContext, args?: readonly string[]) {
  const server = await Server.start(t, args);
  const client = new Client(server.address, { timeoutMs: 5000 });
  cleanUp(t, () => {
    client.close();
  });
  return { server, client };
}

/** Reads until there is an update of this type. */
async function until<T extends WatchUpdate["type"]>(watch: Watch, type: T): Promise<WatchUpdate & { type: T }> {
  const read = async () => {
    for (;;) {
      const { value, done } = await watch.next();
      if (done) throw new Error("the watch has ended");
      if (value.type === type) return value as WatchUpdate & { type: T };
    }
  };
  return within(read(), `the watch returns ${type}`);
}

/** Reads `count` events, whatever comes between them. */
async function events(watch: Watch, count: number): Promise<SessionEvent[]> {
  const all: SessionEvent[] = [];
  while (all.length < count) all.push(...(await until(watch, "events")).events);
  return all;
}

const key = ({ session }: SessionEvent) => session.sessionId;

test("a snapshot is followed by events", async (t) => {
  const { client } = await start(t);
  await client.create({ sessionId: 1n });
  await using watch = client.watch({ snapshot: true });
  assert.equal((await until(watch, "subscribed")).heartbeatMs, 15_000);
  assert.equal((await until(watch, "snapshot")).sessions[0]?.session.sessionId, 1n);
  assert.equal((await until(watch, "synced")).sessionCount, 1n);
  await client.create({ authKeyId: -5n, sessionId: 2n });
  await client.destroy({ sessionId: 1n });
  const [created, destroyed] = await events(watch, 2);
  assert.equal(created?.type, "created");
  assert.equal(created.session.authKeyId, -5n);
  assert.ok(destroyed?.type === "destroyed" && destroyed.reason === "requested");
});

test("placements report moves, leases and places", async (t) => {
  const { client } = await start(t);
  const one = await client.grantLease(60_000, "gw-1");
  const two = await client.grantLease(60_000, "gw-2");
  await using watch = client.watch({ placements: true });
  await until(watch, "subscribed");
  const session = { sessionId: -(2n ** 63n) };
  await client.create(session, { leaseId: one.leaseId });
  await client.create(session, { leaseId: two.leaseId });
  const { place } = await client.destroy(session, { leaseId: two.leaseId, withPlace: true });
  const seen: SessionEvent[] = [];
  let reached = 0n;
  while (seen.length < 3) {
    const update = await until(watch, "events");
    seen.push(...update.events);
    reached = update.places[0]?.position ?? 0n;
  }
  const [created, moved, destroyed] = seen;
  assert.ok(created?.type === "created" && created.leaseId === one.leaseId);
  assert.ok(moved?.type === "moved" && moved.leaseId === two.leaseId && moved.previousLeaseId === one.leaseId);
  assert.ok(destroyed?.type === "destroyed" && destroyed.reason === "released");
  assert.equal(reached, place?.position);
});

test("filters hide other sessions", async (t) => {
  const { client } = await start(t);
  const { leaseId } = await client.grantLease(60_000);
  await using byId = client.watch({ sessionIds: [2n ** 64n - 1n] });
  await using byKey = client.watch({ authKeyIds: [9n], types: ["destroyed"] });
  await using byLease = client.watch({ leaseIds: [leaseId] });
  for (const watch of [byId, byKey, byLease]) await until(watch, "subscribed");
  await client.batchCreate([{ sessionId: -1n }, { authKeyId: 9n, sessionId: 3n }]);
  await client.create({ sessionId: 4n }, { leaseId });
  await client.destroy({ authKeyId: 9n, sessionId: 3n });
  assert.deepEqual((await events(byId, 1)).map(key), [-1n]);
  assert.deepEqual((await events(byKey, 1)).map(({ type, session }) => [type, session.sessionId]), [["destroyed", 3n]]);
  assert.deepEqual((await events(byLease, 1)).map(key), [4n]);
});

test("a watch resumes after kill -9 without a gap or a repetition", async (t) => {
  const { server, client } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  await using watch = client.watch();
  await until(watch, "subscribed");
  await client.batchCreate(Array.from({ length: 100 }, (_, i) => ({ sessionId: BigInt(i) })));
  const seen = (await events(watch, 100)).map(key);
  await server.kill();
  const { error } = await until(watch, "disconnected");
  assert.equal(error.isRetryable, true);
  await server.restart();
  await client.batchCreate(Array.from({ length: 100 }, (_, i) => ({ sessionId: BigInt(100 + i) })));
  seen.push(...(await events(watch, 100)).map(key));
  assert.deepEqual(seen, Array.from({ length: 200 }, (_, i) => BigInt(i)));
});

test("a cursor resumes in another watch", async (t) => {
  const { client } = await start(t);
  const first = client.watch();
  await until(first, "subscribed");
  await client.create({ sessionId: 1n });
  await events(first, 1);
  const after = first.cursor;
  assert.ok(after);
  first.close();
  await client.create({ sessionId: 2n });
  await using second = client.watch({ after });
  assert.deepEqual((await events(second, 1)).map(key), [2n]);
});

test("a lost registry leads to a reset and a snapshot", async (t) => {
  const { server, client } = await start(t);
  await client.create({ sessionId: 1n });
  await using watch = client.watch({ snapshot: true });
  const { registryId } = await until(watch, "subscribed");
  await until(watch, "synced");
  await server.kill();
  await server.restart();
  assert.notEqual((await until(watch, "subscribed")).registryId, registryId);
  assert.equal((await until(watch, "reset")).reason, "cursor-foreign");
  assert.equal(watch.cursor, undefined);
  assert.equal((await until(watch, "synced")).sessionCount, 0n);
});

test("a drain hands the watch over to the next server", async (t) => {
  const { server, client } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  await using watch = client.watch();
  await until(watch, "subscribed");
  const drained = server.drain();
  const { error, retryInMs } = await until(watch, "disconnected");
  assert.equal(error.reason, "SERVER_DRAINING");
  assert.ok(retryInMs >= (error.retryAfterMs ?? Infinity));
  await drained;
  await server.restart();
  await until(watch, "subscribed");
});

test("silence is a dead stream", async (t) => {
  const { server, client } = await start(t);
  await using watch = client.watch({ heartbeatMs: 300 });
  await until(watch, "heartbeat");
  server.signal("SIGSTOP");
  const stopped = Date.now();
  const { error } = await until(watch, "disconnected");
  assert.match(error.message, /received nothing for 1300 ms/);
  assert.ok(Date.now() - stopped < 5000);
  server.signal("SIGCONT");
  await until(watch, "subscribed");
});

test("a busy observer reads what has arrived before it counts the stream as dead", async (t) => {
  const { client } = await start(t);
  await using watch = client.watch({ heartbeatMs: 300 });
  await until(watch, "subscribed");
  await client.create({ sessionId: 1n });
  const blocked = Date.now();
  while (Date.now() - blocked < 2000);
  const { value } = await within(watch.next(), "the watch goes on");
  assert.equal(value?.type, "events");
  await until(watch, "heartbeat");
});

test("a break within a snapshot leads to a reset", async (t) => {
  const { server, client } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const count = 400_000;
  await client.batchCreate(Array.from({ length: count }, (_, i) => ({ authKeyId: 1n, sessionId: BigInt(i) })));
  const proxied = new Client(proxy.address);
  await using watch = proxied.watch({ snapshot: true });
  await until(watch, "snapshot");
  proxy.cut();
  await until(watch, "disconnected");
  assert.equal(watch.cursor, undefined);
  proxy.heal();
  assert.equal((await until(watch, "reset")).reason, "snapshot-interrupted");
  let sessions = 0;
  for await (const update of watch) {
    if (update.type === "snapshot") sessions += update.sessions.length;
    if (update.type === "synced") break;
  }
  assert.equal(sessions, count);
});

test("a slow consumer holds the server back, and is reset if it falls too far behind", async (t) => {
  const { client } = await start(t, ["--storage", "memory:", "--retain-events", "100000"]);
  await using watch = client.watch();
  await until(watch, "subscribed");
  const before = process.memoryUsage.rss();
  const sessions = Array.from({ length: 65_536 }, (_, i) => ({ authKeyId: 1n, sessionId: BigInt(i) }));
  for (let i = 0; i < 6; i++) {
    await client.batchCreate(sessions);
    await client.batchDestroy(sessions);
  }
  const grown = process.memoryUsage.rss() - before;
  assert.ok(grown < 200 << 20, `${grown >> 20} MiB`);
  assert.equal((await until(watch, "reset")).reason, "lagged");
  await until(watch, "synced");
});

test("only errors that are not retryable end a watch", async (t) => {
  const { client } = await start(t);
  const watch = client.watch({ after: "nonsense" });
  await assert.rejects(watch.next(), { code: status.INVALID_ARGUMENT, reason: "MALFORMED_CURSOR" });
  watch.close();
  assert.throws(() => client.watch({ snapshot: true, after: "x" }));
});

test("closing ends a pending read", async (t) => {
  const { client } = await start(t);
  const watch = client.watch();
  await until(watch, "subscribed");
  const pending = watch.next();
  watch.close();
  assert.equal((await pending).done, true);
  await eventually("the watch stays closed", async () => (await watch.next()).done);
});
