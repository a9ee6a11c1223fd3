import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import {
  InterceptingCall,
  Server as GrpcServer,
  ServerCredentials,
  status,
  type handleServerStreamingCall,
} from "@grpc/grpc-js";

import { Client, type Mirror, type MirrorChange, type MirrorOptions } from "../src";
import { cleanUp } from "./cleanup";
import { toMs } from "../src/duration";
import { ResetReason, SubscribeRequest, SubscribeResponse } from "../src/generated/sessiond/v1/session_service";
import { eventually, within } from "./eventually";
import { Proxy } from "./proxy";
import { Server, temporaryFolder } from "./server";

const session = { authKeyId: -7n, sessionId: 42n };

async function start(t: TestContext, args?: readonly string[]) {
  const server = await Server.start(t, args);
  const client = new Client(server.address, { timeoutMs: 5000 });
  cleanUp(t, () => {
    client.close();
  });
  const startMirror = (options: MirrorOptions = {}, of = client) => {
    const mirror = of.mirror(options);
    cleanUp(t, () => {
      mirror.close();
    });
    return mirror;
  };
  return { server, client, startMirror };
}

/** Starts a server whose streams the test writes, and a mirror of it. */
async function startFake(t: TestContext, subscribe: handleServerStreamingCall<SubscribeRequest, SubscribeResponse>) {
  const server = new GrpcServer();
  server.register(
    "/sessiond.v1.SessionService/Subscribe",
    subscribe,
    (message: SubscribeResponse) => Buffer.from(SubscribeResponse.encode(message).finish()),
    (bytes) => SubscribeRequest.decode(bytes),
    "serverStream",
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  const client = new Client(`http://127.0.0.1:${port}`, { timeoutMs: 5000 });
  const mirror = client.mirror();
  cleanUp(t, () => {
    mirror.close();
    client.close();
    server.forceShutdown();
  });
  return mirror;
}

function subscribed(cursor: string): SubscribeResponse {
  return { body: { $case: "subscribed", subscribed: { registryId: "r", heartbeat: undefined, places: [] } }, cursor };
}

function syncedAt(position: bigint, cursor: string): SubscribeResponse {
  const places = [{ partition: 0, position }];
  return { body: { $case: "synced", synced: { sessionCount: 0n, places } }, cursor };
}

function many(count: number, from = 0) {
  return Array.from({ length: count }, (_, i) => ({ authKeyId: 1n, sessionId: BigInt(from + i) }));
}

/** Fails unless the mirror holds what the registry holds. */
async function assertExact(client: Client, mirror: Mirror): Promise<void> {
  const held = [...mirror];
  const { exists, leaseIds } = await client.batchLookup(held.map(({ session }) => session));
  assert.ok(exists.every(Boolean));
  assert.deepEqual(leaseIds, held.map(({ leaseId }) => leaseId));
}

test("a mirror reads one's own writes", async (t) => {
  const { client, startMirror } = await start(t);
  const mirror = startMirror();
  await mirror.synced();
  const { leaseId } = await client.grantLease(60_000, "gw-1");
  for (let i = 0; i < 50; i++) {
    const { place } = await client.create(session, { leaseId, withPlace: true });
    assert.ok(place);
    await mirror.waitUntil(place);
    assert.equal(mirror.has(session), true);
    assert.deepEqual(mirror.holderOf(session), { leaseId, owner: "gw-1" });
    const destroyed = await client.destroy(session, { withPlace: true });
    assert.ok(destroyed.place);
    await mirror.waitUntil([destroyed.place]);
    assert.equal(mirror.has(session), false);
    assert.equal(mirror.holderOf(session), undefined);
  }
});

test("a mirror holds what the registry holds, and where", async (t) => {
  const { client, startMirror } = await start(t);
  const leases = [await client.grantLease(60_000, "gw-0"), await client.grantLease(60_000, "gw-1")];
  await client.batchCreate(many(1000), { leaseId: leases[0]?.leaseId ?? 0n });
  await client.create({ sessionId: 0n });
  const mirror = startMirror();
  assert.ok(mirror.stalenessMs < 60_000);
  assert.equal(mirror.isSynced, false);
  await mirror.synced();
  assert.equal(mirror.isSynced, true);
  assert.equal(mirror.size, 1001);
  assert.equal(mirror.stalenessMs, 0);
  await assertExact(client, mirror);
  assert.equal(mirror.holderOf({ sessionId: 0n }), undefined);
  const moved = await client.batchCreate(many(500), { leaseId: leases[1]?.leaseId ?? 0n, withPlace: true });
  await mirror.waitUntil(moved.places);
  assert.equal(mirror.holderOf(many(1)[0] ?? session)?.owner, "gw-1");
  assert.equal(mirror.holderOf(many(1, 999)[0] ?? session)?.owner, "gw-0");
  await assertExact(client, mirror);
});

test("a mirror asks for a heartbeat every 5 s", async (t) => {
  const { server, startMirror } = await start(t);
  const asked: (number | undefined)[] = [];
  const record = (message: unknown) => asked.push(toMs((message as SubscribeRequest).heartbeat));
  const client = new Client(server.address, {
    interceptors: [
      (options, nextCall) =>
        new InterceptingCall(nextCall(options), {
          sendMessage(message, next) {
            record(message);
            next(message);
          },
        }),
    ],
  });
  cleanUp(t, () => {
    client.close();
  });
  await startMirror({}, client).synced();
  await startMirror({ heartbeatMs: 300 }, client).synced();
  assert.deepEqual(asked, [5000, 300]);
});

test("changes say why a session was destroyed", async (t) => {
  const { client, startMirror } = await start(t);
  const { leaseId } = await client.grantLease(60_000);
  const sessions = many(3);
  await client.batchCreate(sessions, { leaseId });
  const mirror = startMirror();
  await mirror.synced();
  const changes = mirror.changes();
  await client.destroy(sessions[0] ?? session);
  await client.destroy(sessions[1] ?? session, { leaseId });
  await client.revokeLease(leaseId);
  const reasons = new Map<bigint, string | undefined>();
  while (reasons.size < 3) {
    const change = (await within(changes.next(), "a change")).value as MirrorChange;
    assert.ok(change.type === "destroyed", change.type);
    reasons.set(change.session.sessionId, change.reason);
  }
  assert.deepEqual(reasons, new Map([[0n, "requested"], [1n, "released"], [2n, "lease-revoked"]]));
});

test("the first contents are changes of an empty mirror", async (t) => {
  const { client, startMirror } = await start(t);
  await client.create(session);
  const first = (await startMirror().changes().next()).value as MirrorChange;
  assert.ok(first.type === "created" && first.session.equals(session));
});

test("a mirror of a lease holds its sessions only", async (t) => {
  const { client, startMirror } = await start(t);
  const one = await client.grantLease(60_000);
  const two = await client.grantLease(60_000);
  await client.create({ sessionId: 1n }, { leaseId: one.leaseId });
  await client.create({ sessionId: 2n }, { leaseId: two.leaseId });
  const mirror = startMirror({ leaseIds: [one.leaseId] });
  await mirror.synced();
  assert.deepEqual([...mirror].map((held) => held.session.sessionId), [1n]);
  await client.create({ sessionId: 2n }, { leaseId: one.leaseId });
  const { place } = await client.create({ sessionId: 1n }, { leaseId: two.leaseId, withPlace: true });
  assert.ok(place);
  await mirror.waitUntil(place);
  assert.deepEqual([...mirror].map((held) => held.session.sessionId), [2n]);
});

test("a mirror with a filter waits for a change that the filter hides", async (t) => {
  const { client, startMirror } = await start(t);
  const mirror = startMirror({ sessionIds: [1n] });
  await mirror.synced();
  const { place } = await client.create({ sessionId: 2n }, { withPlace: true });
  assert.ok(place);
  await mirror.waitUntil(place, 10_000);
  assert.equal(mirror.size, 0);
});

test("a mirror stays exact over a kill of the server, and says how old it is", async (t) => {
  const { server, client, startMirror } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  await client.batchCreate(many(1000));
  const mirror = startMirror();
  await mirror.synced();
  await server.kill();
  await eventually("the mirror is stale", () => mirror.stalenessMs > 0);
  assert.equal(mirror.size, 1000);
  await server.restart();
  const { places } = await client.batchDestroy(many(500), { withPlace: true });
  await mirror.waitUntil(places);
  assert.equal(mirror.size, 500);
  await eventually("the mirror is live", () => mirror.stalenessMs === 0);
  await assertExact(client, mirror);
});

test("a lost registry fails waits, and the old contents stay until the new ones are complete", async (t) => {
  const { server, client, startMirror } = await start(t);
  await client.batchCreate(many(100));
  const mirror = startMirror();
  await mirror.synced();
  const changes = mirror.changes();
  const waiting = mirror.waitUntil({ partition: 0, position: 2n ** 60n });
  const failed = assert.rejects(waiting, { code: status.FAILED_PRECONDITION, reason: "REGISTRY_LOST", isRetryable: false });
  await server.kill();
  assert.equal(mirror.size, 100);
  await server.restart();
  await client.batchCreate(many(2));
  await within(failed, "the wait fails");
  await eventually("the mirror holds the new registry", () => mirror.size === 2);
  // Only the differences are told. Sessions may have been created again after the snapshot.
  const held = new Map(many(100).map((key) => [key.sessionId, true]));
  while ([...held.values()].filter(Boolean).length > 2 || !held.get(0n) || !held.get(1n)) {
    const change = (await within(changes.next(), "a change")).value as MirrorChange;
    assert.ok(change.type === "created" || change.type === "destroyed", change.type);
    assert.notEqual(held.get(change.session.sessionId), change.type === "created");
    held.set(change.session.sessionId, change.type === "created");
  }
});

test("a wait fails when the registry is rolled back", async (t) => {
  let rollBack: (() => void) | undefined;
  const mirror = await startFake(t, (stream) => {
    stream.write(subscribed(rollBack === undefined ? "" : "c"));
    if (rollBack === undefined) {
      stream.write(syncedAt(7n, "c"));
      rollBack = () => {
        stream.emit("error", { code: status.UNAVAILABLE, details: "broken" });
      };
    } else {
      stream.write({ body: { $case: "reset", reset: { reason: ResetReason.STORAGE_RESTARTED } }, cursor: "" });
      stream.write(syncedAt(3n, "d"));
    }
  });
  await mirror.waitUntil({ partition: 0, position: 7n });
  const waiting = mirror.waitUntil({ partition: 0, position: 8n });
  rollBack?.();
  await assert.rejects(waiting, { reason: "REGISTRY_LOST" });
  // The same position may be another change now.
  await mirror.waitUntil({ partition: 0, position: 3n });
  await assert.rejects(mirror.waitUntil({ partition: 0, position: 7n }, 100), { code: status.DEADLINE_EXCEEDED });
});

test("a mirror whose stream is refused fails every wait, and follows once it is allowed", async (t) => {
  let isAllowed = false;
  const mirror = await startFake(t, (stream) => {
    if (isAllowed) {
      stream.write(subscribed(""));
      stream.write(syncedAt(1n, "c"));
    } else {
      stream.emit("error", { code: status.PERMISSION_DENIED, details: "refused" });
    }
  });
  await assert.rejects(mirror.synced(), { code: status.PERMISSION_DENIED });
  await assert.rejects(mirror.waitUntil({ partition: 0, position: 1n }), { code: status.PERMISSION_DENIED });
  isAllowed = true;
  await eventually("the mirror is synced", () => mirror.isSynced);
  await mirror.synced();
  await mirror.waitUntil({ partition: 0, position: 1n });
});

test("a reader of changes that is too slow is told to read the mirror", async (t) => {
  const { client, startMirror } = await start(t);
  const mirror = startMirror();
  const changes = mirror.changes();
  await mirror.synced();
  await client.create(session);
  assert.equal(((await changes.next()).value as MirrorChange).type, "created");
  await client.batchCreate(many(65_536));
  const { places } = await client.batchCreate(many(10, 65_536), { withPlace: true });
  await mirror.waitUntil(places);
  assert.deepEqual((await changes.next()).value, { type: "resync" });
  assert.equal(mirror.size, 65_547);
  mirror.close();
  let rest = 0;
  for await (const change of changes) if (change.type === "created") rest++;
  assert.ok(rest <= 10);
});

test("a wait for a place that never comes ends, and so does every wait when the mirror is closed", async (t) => {
  const { startMirror } = await start(t);
  const mirror = startMirror();
  await mirror.synced();
  const never = { partition: 0, position: 2n ** 60n };
  await assert.rejects(mirror.waitUntil(never, 100), { code: status.DEADLINE_EXCEEDED });
  const waiting = mirror.waitUntil(never);
  mirror.close();
  await assert.rejects(waiting, { code: status.CANCELLED, reason: "CLOSED", isRetryable: false });
  const closed = startMirror();
  closed.close();
  await assert.rejects(closed.synced(), { code: status.CANCELLED });
});

test("owners that cannot be looked up at first are looked up later", async (t) => {
  const { server, client, startMirror } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const { leaseId } = await client.grantLease(60_000, "gw-1");
  await client.create(session, { leaseId });
  let isRefused = true;
  const proxied = new Client(proxy.address, {
    timeoutMs: 2000,
    interceptors: [
      (options, nextCall) => {
        if (isRefused && options.method_definition.path.endsWith("ListLeases")) throw new Error("refused by the test");
        return new InterceptingCall(nextCall(options));
      },
    ],
  });
  cleanUp(t, () => {
    proxied.close();
  });
  const mirror = startMirror({}, proxied);
  await mirror.synced();
  assert.deepEqual(mirror.holderOf(session), { leaseId, owner: undefined });
  isRefused = false;
  await eventually("the owner is known", () => mirror.holderOf(session)?.owner === "gw-1");
});
