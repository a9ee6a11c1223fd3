import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";

import { Client as GrpcClient, credentials, status } from "@grpc/grpc-js";

import { Client, SessiondError } from "../src";
import { parseAddress } from "../src/address";
import { cleanUp } from "./cleanup";
import { collect } from "./collect";
import { within } from "./eventually";
import { Proxy } from "./proxy";
import { Server } from "./server";

const session = { sessionId: 42n };

test("sessions are created, found, moved and destroyed", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const { leaseId, ttlMs } = await client.grantLease(60_000, "gw-1");
  const other = await client.grantLease(60_000, "gw-2");
  assert.equal(ttlMs, 60_000);
  assert.equal(await client.keepLeaseAlive(leaseId), 60_000);

  assert.deepEqual(await client.create(session, { leaseId }), { created: true, heldBy: undefined, place: undefined });
  assert.deepEqual(await client.lookup(session), { exists: true, lease: { leaseId, owner: "gw-1" } });
  const refused = await client.create(session, { leaseId: other.leaseId, onlyFrom: 0n });
  assert.deepEqual(refused.heldBy, { leaseId, owner: "gw-1" });
  const moved = await client.create(session, { leaseId: other.leaseId, onlyFrom: leaseId, withPlace: true });
  assert.equal(moved.heldBy, undefined);
  assert.ok(moved.place && moved.place.position > 0n);

  const taken = await client.take(session, leaseId, { onlyFrom: other.leaseId });
  assert.deepEqual(taken, { created: false, heldBy: undefined, place: undefined });
  assert.deepEqual((await client.take(session, other.leaseId)).heldBy, { leaseId, owner: "gw-1" });
  await client.take(session, other.leaseId, { onlyFrom: leaseId });

  assert.equal((await client.destroy(session, { leaseId })).destroyed, false);
  assert.equal((await client.destroy(session, { leaseId: other.leaseId })).destroyed, true);
  assert.deepEqual(await client.lookup(session), { exists: false, lease: undefined });
});

test("batches of any size are split", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const { leaseId } = await client.grantLease(60_000);
  const sessions = Array.from({ length: 150_000 }, (_, i) => ({ authKeyId: BigInt(i % 3), sessionId: BigInt(i) }));
  const taken = await client.batchTake(sessions, leaseId, { withPlace: true });
  assert.equal(taken.created.filter(Boolean).length, sessions.length);
  assert.ok(taken.leaseIds.every((id) => id === leaseId));
  assert.equal(taken.places.length, 1);
  assert.deepEqual(await client.batchHas([{ sessionId: -1n }, ...sessions.slice(0, 2)]), [false, true, true]);
  const located = await client.batchLookup(sessions);
  assert.ok(located.exists.every(Boolean) && located.leaseIds.every((id) => id === leaseId));
  const { destroyed } = await client.batchDestroy(sessions, { leaseId });
  assert.equal(destroyed.filter(Boolean).length, sessions.length);
  assert.deepEqual(await client.batchHas([]), []);
});

test("leases are listed over several pages", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const granted = new Set<bigint>();
  for (let i = 0; i < 5; i++) granted.add((await client.grantLease(60_000, `gw-${i % 2}`)).leaseId);
  const listed = await collect(client.listLeases({ pageSize: 2 }));
  assert.deepEqual(new Set(listed.map(({ leaseId }) => leaseId)), granted);
  const some = await collect(client.listLeases({ owner: "gw-1" }));
  assert.equal(some.length, 2);
  assert.ok(some.every(({ owner, ttlMs, sessionCount }) => owner === "gw-1" && ttlMs === 60_000 && sessionCount === 0n));
});

test("leases of any number are listed in order", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const granted: bigint[] = [];
  for (let i = 0; i < 3; i++) granted.push((await client.grantLease(60_000)).leaseId);
  granted.sort((a, b) => Number(a - b));
  const unknown = Array.from({ length: 70_000 }, (_, i) => 2n ** 60n + BigInt(i));
  const listed = await collect(client.listLeases({ leaseIds: [...unknown, ...granted.toReversed()], pageSize: 2 }));
  assert.deepEqual(listed.map(({ leaseId }) => leaseId), granted);
});

test("errors have their code, reason and retry", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  await assert.rejects(client.create(session, { leaseId: 7n }), (error: SessiondError) => {
    assert.ok(error instanceof SessiondError);
    assert.equal(error.code, status.FAILED_PRECONDITION);
    assert.equal(error.reason, "LEASE_GONE");
    assert.equal(error.isLeaseGone, true);
    assert.equal(error.isRetryable, false);
    return true;
  });
  await assert.rejects(client.grantLease(10), { reason: "BAD_DURATION", isRetryable: false });
});

test("a call waits for a server that is starting, and gives up after the timeout", async (t) => {
  const server = await Server.start(t);
  await server.kill();
  using client = new Client(server.address, { timeoutMs: 20_000 });
  using hasty = new Client(server.address, { timeoutMs: 300 });
  await assert.rejects(hasty.has(session), { code: status.DEADLINE_EXCEEDED, isRetryable: true });
  const answer = client.has(session);
  await server.restart();
  assert.equal(await answer, false);
});

test("a closed client makes no calls, and those in flight fail", async (t) => {
  const server = await Server.start(t);
  const proxy = await Proxy.start(t, server.port);
  const client = new Client(proxy.address);
  await client.has(session);
  proxy.stall();
  const closed = { code: status.CANCELLED, reason: "CLOSED", isRetryable: false };
  const inFlight = assert.rejects(client.has(session), closed);
  await new Promise((resolve) => setTimeout(resolve, 100));
  client.close();
  await within(inFlight, "the call in flight fails");
  await assert.rejects(client.has(session), closed);
  assert.throws(() => client.channel, closed);
});

test("a call that waits for a connection fails when the client is closed", async (t) => {
  const server = await Server.start(t);
  await server.kill();
  const client = new Client(server.address);
  const waiting = assert.rejects(client.has(session), { code: status.CANCELLED, reason: "CLOSED" });
  await new Promise((resolve) => setTimeout(resolve, 100));
  client.close();
  await within(waiting, "the call that waits fails");
});

test("other services can be called over the channel", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const options = { channelOverride: client.channel };
  const health = new GrpcClient("the channel has the address", credentials.createInsecure(), options);
  const answer = await new Promise<Buffer | undefined>((resolve, reject) => {
    const same = (bytes: Buffer) => bytes;
    health.makeUnaryRequest("/grpc.health.v1.Health/Check", same, same, Buffer.alloc(0), (error, answer) => {
      if (error) reject(error);
      else resolve(answer);
    });
  });
  assert.deepEqual(answer, Buffer.from([8, 1])); // SERVING
});

test("an attempt to connect that hangs is given up", async (t) => {
  const server = await Server.start(t);
  const sockets: Socket[] = [];
  const proxy = createServer((socket) => {
    sockets.push(socket);
    if (sockets.length === 1) return; // It hangs.
    const upstream = connect(server.port, "127.0.0.1");
    sockets.push(upstream);
    socket.pipe(upstream).pipe(socket);
    for (const end of [socket, upstream]) end.on("error", () => undefined);
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  cleanUp(t, () => {
    proxy.close();
    for (const socket of sockets) socket.destroy();
  });
  using client = new Client(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, {
    timeoutMs: 60_000,
    connectTimeoutMs: 500,
  });
  const calls = Array.from({ length: 3 }, () => client.has(session));
  assert.deepEqual(await within(Promise.all(calls), "the calls are answered", 60_000), [false, false, false]);
});

test("addresses are checked", () => {
  assert.deepEqual(parseAddress("http://127.0.0.1:50051"), { target: "dns:127.0.0.1:50051", isTls: false });
  assert.deepEqual(parseAddress("http://[::1]:50051"), { target: "dns:[::1]:50051", isTls: false });
  assert.deepEqual(parseAddress("https://sessiond.example"), { target: "dns:sessiond.example:443", isTls: true });
  assert.deepEqual(parseAddress("unix:/run/sessiond"), { target: "unix:/run/sessiond", isTls: false });
  for (const bad of ["", "127.0.0.1:50051", "localhost", "https://", "http://host:1/path", "redis://h:1", "unix:", "unix://"]) {
    assert.throws(() => new Client(bad), { code: status.INVALID_ARGUMENT }, bad);
  }
});
