import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { status } from "@grpc/grpc-js";

import { Client, SessionElsewhereError, type Connection, type Gateway, type GatewayOptions } from "../src";
import { cleanUp } from "./cleanup";
import { collect } from "./collect";
import { eventually, within } from "./eventually";
import { Proxy } from "./proxy";
import { Server, temporaryFolder } from "./server";

const session = { authKeyId: 7n, sessionId: 42n };

async function startGateway(t: TestContext, address: string, owner: string, options: GatewayOptions = {}) {
  const client = new Client(address, { timeoutMs: 5000 });
  const gateway = await client.gateway(owner, { ttlMs: 3000, ...options });
  cleanUp(t, async () => {
    await gateway.stop(0).catch(() => undefined);
    client.close();
  });
  return gateway;
}

async function holder(client: Client, of = session): Promise<string | undefined> {
  return (await client.lookup(of)).lease?.owner;
}

async function start(t: TestContext, args?: readonly string[]) {
  const server = await Server.start(t, args);
  const client = new Client(server.address);
  cleanUp(t, () => {
    client.close();
  });
  return { server, client };
}

function closedSoon(connection: Connection) {
  return within(connection.closed, "the connection closes");
}

test("a session lives as long as its connection", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connection = await gateway.connect(session);
  assert.equal(await holder(client), "gw-1");
  connection.close();
  assert.deepEqual(await connection.closed, { type: "closed" });
  await eventually("the session ends", async () => !(await client.has(session)));
});

test("a second connection survives the close of the first", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const first = await gateway.connect(session);
  const second = await gateway.connect(session);
  first.close();
  // A round trip of another session: the round that handled the close is over.
  (await gateway.connect({ sessionId: 1n })).close();
  assert.equal(await client.has(session), true);
  assert.equal(second.isOpen, true);
  second.close();
  await eventually("the session ends", async () => !(await client.has(session)));
});

test("the newest connection wins, and the old one is told to close", async (t) => {
  const { server, client } = await start(t);
  const old = await startGateway(t, server.address, "gw-1");
  const fresh = await startGateway(t, server.address, "gw-2");
  const first = await old.connect(session);
  await fresh.connect(session);
  assert.deepEqual(await closedSoon(first), { type: "moved", leaseId: fresh.leaseId });
  first.close();
  assert.equal(await holder(client), "gw-2");
  // And back again.
  const third = await old.connect(session);
  assert.equal(await holder(client), "gw-1");
  assert.equal(third.isOpen, true);
});

test("a session that someone else destroys closes its connection", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connection = await gateway.connect(session);
  await client.destroy(session);
  assert.deepEqual(await closedSoon(connection), { type: "destroyed", reason: "requested" });
  const again = await gateway.connect(session);
  assert.equal(again.isOpen, true);
  assert.equal(await holder(client), "gw-1");
});

test("a session that was created again under no lease was destroyed", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connection = await gateway.connect(session);
  // The gateway's stream is open once it has ended a session without a connection.
  await client.create({ sessionId: 1n }, { leaseId: gateway.leaseId });
  await eventually("the other session is destroyed", async () => !(await client.has({ sessionId: 1n })));
  const { client: own } = gateway["parts"];
  const lookUp = own.batchLookup.bind(own);
  own.batchLookup = async (sessions) => {
    await client.create(session);
    return lookUp(sessions);
  };
  await client.destroy(session);
  assert.deepEqual(await closedSoon(connection), { type: "destroyed", reason: "requested" });
  assert.deepEqual(await client.lookup(session), { exists: true, lease: undefined });
});

test("a destroy that is delayed past the next connect is undone", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connection = await gateway.connect(session);
  await client.create({ sessionId: 1n }, { leaseId: gateway.leaseId });
  await eventually("the other session is destroyed", async () => !(await client.has({ sessionId: 1n })));
  assert.equal((await client.destroy(session, { leaseId: gateway.leaseId })).destroyed, true);
  await eventually("the session is registered again", async () => (await holder(client)) === "gw-1");
  assert.equal(connection.isOpen, true);
});

test("a client that moved away and came back gets its old connection closed", async (t) => {
  const { server } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const home = await startGateway(t, proxy.address, "gw-1", { ttlMs: 30_000 });
  const other = await startGateway(t, server.address, "gw-2");
  const first = await home.connect(session);
  proxy.cut();
  await other.connect(session);
  const back = home.connect(session);
  proxy.heal();
  const [second] = await Promise.all([within(back, "the client is back").catch((error: unknown) => error), closedSoon(first)]);
  // The lookup came late, so the session may have been left where it is.
  if (second instanceof Error) assert.ok(second instanceof SessionElsewhereError);
  else assert.equal((second as Connection).isOpen, true);
  assert.equal(first.isOpen, false);
});

test("an orderly stop lingers and tells every connection", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const next = await startGateway(t, server.address, "gw-2");
  const connection = await gateway.connect(session);
  const lease = gateway.leaseId;
  await gateway.stop(60_000);
  assert.deepEqual(await connection.closed, { type: "stopped" });
  connection.close();
  assert.equal(await client.has(session), true);
  await assert.rejects(gateway.connect(session), { code: status.FAILED_PRECONDITION, reason: "GATEWAY_STOPPED" });
  await next.connect(session);
  assert.equal(await holder(client), "gw-2");
  for await (const { lingers } of client.listLeases({ leaseIds: [lease] })) assert.equal(lingers, true);
});

test("stopping ends the sessions that were closed before, and every caller waits for it", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const lease = gateway.leaseId;
  const sessions = Array.from({ length: 10_000 }, (_, i) => ({ sessionId: BigInt(i) }));
  const connections = await Promise.all(sessions.map((one) => gateway.connect(one)));
  for (const connection of connections) connection.close();
  void gateway.stop(60_000);
  await gateway.stop(60_000);
  assert.equal((await client.batchHas(sessions)).filter(Boolean).length, 0);
  const [status] = await collect(client.listLeases({ leaseIds: [lease] }));
  assert.equal(status?.lingers, true);
});

test("a killed server with a file keeps every session and connection", async (t) => {
  const { server, client } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connections = await connectMany(gateway, 500);
  const lease = gateway.leaseId;
  await server.kill();
  connections[0]?.close();
  const late = gateway.connect({ sessionId: 10_000n });
  await server.restart();
  assert.equal((await late).isOpen, true);
  assert.equal(gateway.leaseId, lease);
  await eventually("the closed session ends", async () => !(await client.has({ sessionId: 0n })));
  const rest = connections.slice(1);
  assert.ok(rest.every(({ isOpen }) => isOpen));
  assert.ok((await client.batchHas(rest.map(({ session }) => session))).every(Boolean));
});

test("a registry that was lost gets every session again, and no ghost", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connections = await connectMany(gateway, 500);
  const lease = gateway.leaseId;
  await server.kill();
  connections[0]?.close();
  await server.restart();
  const rest = connections.slice(1).map((connection) => connection.session);
  await eventually("every session is registered again", async () => (await client.batchHas(rest)).every(Boolean));
  assert.notEqual(gateway.leaseId, lease);
  assert.ok(connections.slice(1).every(({ isOpen }) => isOpen));
  assert.equal(await client.has({ sessionId: 0n }), false);
});

test("closing while 20,000 sessions are registered again leaves no ghost", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const connections = await connectMany(gateway, 20_000);
  const lease = gateway.leaseId;
  await server.kill();
  await server.restart();
  await eventually("the lease is granted again", () => gateway.leaseId !== lease);
  const closed = connections.filter((_, i) => i % 2 === 0);
  for (const [i, connection] of closed.entries()) {
    if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    connection.close();
  }
  const open = connections.filter(({ isOpen }) => isOpen);
  assert.equal(open.length, 10_000);
  const status = await eventually("only open connections have sessions", async () => {
    for await (const lease of client.listLeases()) if (lease.sessionCount === 10_000n) return lease;
    return undefined;
  });
  assert.equal(status.leaseId, gateway.leaseId);
  assert.ok((await client.batchHas(open.map(({ session }) => session))).every(Boolean));
});

test("a gateway that was cut off does not steal a session back", async (t) => {
  const { server, client } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const cutOff = await startGateway(t, proxy.address, "gw-1");
  const other = await startGateway(t, server.address, "gw-2");
  const moved = await cutOff.connect(session);
  const stays = await cutOff.connect({ sessionId: 1n });
  const lease = cutOff.leaseId;
  proxy.cut();
  const taken = await other.connect(session);
  await eventually("the lease expires", async () => !(await client.has({ sessionId: 1n })));
  proxy.heal();
  assert.deepEqual(await closedSoon(moved), { type: "moved", leaseId: other.leaseId });
  await eventually("the other session is back", async () => (await holder(client, { authKeyId: 0n, sessionId: 1n })) === "gw-1");
  assert.notEqual(cutOff.leaseId, lease);
  assert.equal(stays.isOpen, true);
  assert.equal(taken.isOpen, true);
  assert.equal(await holder(client), "gw-2");
});

test("a gateway with a short partition keeps its sessions, and takes over from one that is cut off", async (t) => {
  const { server, client } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const cutOff = await startGateway(t, proxy.address, "gw-1", { ttlMs: 30_000 });
  const other = await startGateway(t, server.address, "gw-2");
  const first = await cutOff.connect(session);
  const kept = await cutOff.connect({ sessionId: 1n });
  proxy.cut();
  // gw-1 still has its lease, and the client has gone to gw-2.
  const second = await other.connect(session);
  assert.equal(await holder(client), "gw-2");
  proxy.heal();
  assert.deepEqual(await closedSoon(first), { type: "moved", leaseId: other.leaseId });
  first.close();
  assert.equal(kept.isOpen, true);
  assert.equal(second.isOpen, true);
  assert.equal(await holder(client), "gw-2");
  assert.equal(await client.has({ sessionId: 1n }), true);
});

test("a create that is delayed past the close leaves no ghost", async (t) => {
  const { server, client } = await start(t);
  const proxy = await Proxy.start(t, server.port);
  const gateway = await startGateway(t, proxy.address, "gw-1", { ttlMs: 30_000 });
  await gateway.connect({ sessionId: 1n });
  proxy.stall();
  const abort = new AbortController();
  const connecting = gateway.connect(session, { signal: abort.signal });
  await new Promise((resolve) => setTimeout(resolve, 100));
  abort.abort();
  await assert.rejects(connecting, { name: "AbortError" });
  // Someone writes the late create that is still under way.
  await client.create(session, { leaseId: gateway.leaseId });
  proxy.heal();
  await eventually("the late session is destroyed", async () => !(await client.has(session)));
  assert.equal(await client.has({ sessionId: 1n }), true);
});

test("a create that arrives when nobody remembers the connection leaves no ghost", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  (await gateway.connect(session)).close();
  await eventually("the book is empty", () => gateway["book"].size === 0);
  assert.equal((await client.create(session, { leaseId: gateway.leaseId })).created, true);
  await eventually("the late session is destroyed", async () => !(await client.has(session)));
});

test("connect fails in time while the registry is away, and nothing is left of it", async (t) => {
  const { server, client } = await start(t, ["--storage", `file:${temporaryFolder(t)}/registry`]);
  const own = new Client(server.address, { timeoutMs: 500 });
  const gateway = await own.gateway("gw-1", { ttlMs: 20_000 });
  cleanUp(t, async () => {
    await gateway.stop(0);
    own.close();
  });
  await server.kill();
  await assert.rejects(gateway.connect(session), { code: status.DEADLINE_EXCEEDED });
  await server.restart();
  const connection = await eventually("the gateway works again", () => gateway.connect({ sessionId: 1n }).catch(() => undefined));
  assert.equal(connection.isOpen, true);
  assert.equal(await client.has(session), false);
});

test("a lease that someone revokes is replaced, and its sessions stay", async (t) => {
  for (const lingerMs of [0, 60_000]) {
    const { server, client } = await start(t);
    const gateway = await startGateway(t, server.address, "gw-1");
    const connection = await gateway.connect(session);
    const lease = gateway.leaseId;
    await client.revokeLease(lease, lingerMs);
    await eventually("a new lease holds the session", async () => {
      const held = (await client.lookup(session)).lease?.leaseId;
      return held !== undefined && held !== lease && held === gateway.leaseId;
    });
    assert.equal(connection.isOpen, true, `linger ${lingerMs}`);
  }
});

test("connections open and close in every order without a ghost", async (t) => {
  const { server, client } = await start(t);
  const gateway = await startGateway(t, server.address, "gw-1");
  const open: Connection[] = [];
  for (let i = 0; i < 2000; i++) {
    const connecting = gateway.connect({ sessionId: BigInt(i % 50) });
    if (i % 3 === 0) open.push(await connecting);
    else void connecting.then((connection) => open.push(connection));
    if (i % 2 === 0) open.splice(i % Math.max(open.length, 1), 1)[0]?.close();
  }
  await gateway.connect({ sessionId: -1n });
  const expected = new Set(open.map((connection) => connection.session.sessionId));
  const ids = Array.from({ length: 50 }, (_, i) => BigInt(i));
  await eventually("the registry agrees with the connections", async () => {
    const exists = await client.batchHas(ids.map((sessionId) => ({ sessionId })));
    return ids.every((id, i) => exists[i] === expected.has(id));
  });
  for (const connection of open) connection.close();
  await eventually("only the last session is left in the book", () => gateway["book"].size === 1);
});

async function connectMany(gateway: Gateway, count: number): Promise<Connection[]> {
  return Promise.all(Array.from({ length: count }, (_, i) => gateway.connect({ sessionId: BigInt(i) })));
}
