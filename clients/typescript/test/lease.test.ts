import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { Server as GrpcServer, ServerCredentials, status, type handleUnaryCall } from "@grpc/grpc-js";

import { Client, type Lease, type LeaseEvent } from "../src";
import { toDuration } from "../src/duration";
import { GrantLeaseResponse, RevokeLeaseResponse } from "../src/generated/sessiond/v1/lease_service";
import { cleanUp } from "./cleanup";
import { eventually, within } from "./eventually";
import { Proxy } from "./proxy";
import { Server, temporaryFolder } from "./server";

async function start(t: TestContext, args?: readonly string[]) {
  const server = await Server.start(t, args);
  const proxy = await Proxy.start(t, server.port);
  const client = new Client(server.address);
  const proxied = new Client(proxy.address, { timeoutMs: 2000 });
  cleanUp(t, () => {
    client.close();
    proxied.close();
  });
  return { server, proxy, client, proxied };
}

async function next(events: AsyncIterator<LeaseEvent, void>): Promise<LeaseEvent> {
  const { value } = await within(events.next(), "an event of the lease");
  assert.ok(value);
  return value;
}

async function listed(client: Client, { id }: Lease) {
  for await (const lease of client.listLeases({ leaseIds: [id] })) return lease;
  return undefined;
}

test("a lease outlives its ttl, and a revoke ends it", async (t) => {
  const { client } = await start(t);
  const lease = await client.lease(1000, "gw-1");
  await client.create({ sessionId: 1n }, { leaseId: lease.id });
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assert.equal(lease.isHeld, true);
  assert.equal((await listed(client, lease))?.owner, "gw-1");
  assert.equal(await lease.revoke(), 1n);
  await assert.rejects(lease.revoke(), { code: status.NOT_FOUND, isLeaseGone: true });
  assert.equal(await listed(client, lease), undefined);
  const events = lease.events();
  assert.equal((await events.next()).done, true);
});

test("a revoke with a linger leaves the sessions for now", async (t) => {
  const { client } = await start(t);
  const lease = await client.lease(10_000);
  await client.create({ sessionId: 1n }, { leaseId: lease.id });
  assert.equal(await lease.revoke(60_000), 0n);
  assert.equal((await listed(client, lease))?.lingers, true);
  assert.equal(await client.has({ sessionId: 1n }), true);
});

test("a lease that was lost is granted again", async (t) => {
  const { proxy, proxied, client } = await start(t);
  const lease = await proxied.lease(1000);
  const first = lease.id;
  const events = lease.events();
  proxy.cut();
  assert.deepEqual(await next(events), { type: "lost" });
  assert.equal(lease.isHeld, false);
  await eventually("the lease expires", async () => (await listed(client, lease)) === undefined);
  proxy.heal();
  assert.deepEqual(await next(events), { type: "regranted", leaseId: lease.id });
  assert.notEqual(lease.id, first);
  await lease.revoke();
});

test("a lease survives an outage of a durable registry", async (t) => {
  const { server, proxied } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  const lease = await proxied.lease(1000);
  const first = lease.id;
  const events = lease.events();
  await server.kill();
  assert.deepEqual(await next(events), { type: "lost" });
  await server.restart();
  assert.deepEqual(await next(events), { type: "recovered" });
  assert.equal(lease.id, first);
  await lease.revoke();
});

test("a lease that someone else revokes is replaced", async (t) => {
  for (const lingerMs of [0, 60_000]) {
    const { client } = await start(t);
    const lease = await client.lease(1500);
    const first = lease.id;
    const events = lease.events();
    await client.revokeLease(first, lingerMs);
    let event = await next(events);
    if (event.type === "lost") event = await next(events);
    assert.deepEqual(event, { type: "regranted", leaseId: lease.id });
    assert.notEqual(lease.id, first);
    await lease.revoke();
  }
});

test("a connection that hangs does not lose the lease", async (t) => {
  const { proxy, proxied, client } = await start(t);
  const lease = await proxied.lease(3000);
  const first = lease.id;
  proxy.stall();
  await new Promise((resolve) => setTimeout(resolve, 1500));
  proxy.heal();
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assert.equal(lease.id, first);
  assert.ok(await listed(client, lease));
  await lease.revoke();
});

test("a grant and a revoke are retried", async (t) => {
  const server = new GrpcServer();
  cleanUp(t, () => {
    server.forceShutdown();
  });
  const tries = { GrantLease: 0, RevokeLease: 0 };
  const method = (name: keyof typeof tries, answer: Uint8Array) => {
    const handle: handleUnaryCall<Buffer, Buffer> = (_, callback) => {
      if (++tries[name] === 1) callback({ code: status.UNAVAILABLE, details: "a failover" });
      else callback(null, Buffer.from(answer));
    };
    server.register(`/sessiond.v1.LeaseService/${name}`, handle, (bytes: Buffer) => bytes, (bytes) => bytes, "unary");
  };
  method("GrantLease", GrantLeaseResponse.encode({ leaseId: 7n, ttl: toDuration(30_000) }).finish());
  method("RevokeLease", RevokeLeaseResponse.encode({ sessionsDestroyed: 3n }).finish());
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  using client = new Client(`http://127.0.0.1:${port}`);
  const lease = await client.lease(30_000);
  assert.equal(lease.id, 7n);
  assert.equal(await lease.revoke(), 3n);
  assert.deepEqual(tries, { GrantLease: 2, RevokeLease: 2 });
});
