// The agent of the TypeScript client: PROTOCOL.md describes what it does. Needs a built package in clients/typescript.
import { createInterface } from "node:readline";

import { Client, SessionElsewhereError } from "../../../clients/typescript/dist/index.mjs";

if (process.env.SESSIOND_MUTANT) (await import("../mutants/typescript.mjs"))[process.env.SESSIOND_MUTANT]();

const opening = new Map(); // the AbortController of each connection that is opening, by name
const open = new Map(); // the Connection, by name
const paused = { watch: undefined, changes: undefined };
let client, gateway, mirror;

function write(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

/** A valve that an iterator waits at before it takes the next item. */
function pause(what) {
  let release;
  const waiting = new Promise((resolve) => (release = resolve));
  paused[what] ??= { waiting, release };
}

function resume(what) {
  paused[what]?.release();
  paused[what] = undefined;
}

function filters({ session_ids: sessionIds, auth_key_ids: authKeyIds, lease_ids: leaseIds }) {
  return {
    sessionIds: sessionIds?.map(BigInt),
    authKeyIds: authKeyIds?.map(BigInt),
    leaseIds: leaseIds?.map(BigInt),
  };
}

const text = (reason) => reason.replaceAll("-", "_").toUpperCase();
const pair = ({ authKeyId, sessionId }) => [String(authKeyId), String(sessionId)];

class Cancelled extends Error {}

async function connect(name, authKeyId, sessionId) {
  const controller = new AbortController();
  opening.set(name, controller);
  try {
    const connection = await gateway.connect({ authKeyId, sessionId }, { signal: controller.signal });
    open.set(name, connection);
    void connection.closed.then((reason) => {
      if (reason.type === "closed") return;
      open.delete(name);
      const details = { lease: String(reason.leaseId ?? 0n), destroy_reason: text(reason.reason ?? "") };
      write({ event: "closed", connection: name, reason: reason.type, ...details });
    });
  } finally {
    opening.delete(name);
  }
}

function close(name) {
  opening.get(name)?.abort(new Cancelled());
  open.get(name)?.close();
  open.delete(name);
}

function update(item, cursor) {
  const line = { event: "update", kind: item.type, cursor };
  switch (item.type) {
    case "snapshot":
      line.sessions = item.sessions.map(({ session, leaseId }) => [...pair(session), String(leaseId)]);
      break;
    case "synced":
      line.count = Number(item.sessionCount);
      break;
    case "events":
      line.events = item.events.map((event) => [
        event.type,
        ...pair(event.session),
        String(event.leaseId),
        String(event.previousLeaseId ?? 0n),
        text(event.reason ?? ""),
      ]);
      break;
    case "reset":
      line.reason = text(item.reason);
      break;
    case "disconnected":
      line.reason = item.error.reason ?? item.error.message;
  }
  return line;
}

async function follow(watch) {
  for (;;) {
    await paused.watch?.waiting;
    try {
      const { done, value } = await watch.next();
      if (done) return;
      write(update(value, watch.cursor));
    } catch (error) {
      write({ event: "update", kind: "failed", reason: failure(error).reason, cursor: watch.cursor });
      return;
    }
  }
}

async function report(changes) {
  for (;;) {
    await paused.changes?.waiting;
    const { done, value } = await changes.next();
    if (done) return;
    if (value.type === "resync") write({ event: "resync" });
    else {
      const lease = value.type === "destroyed" ? null : String(value.leaseId);
      write({ event: "changes", changes: [[...pair(value.session), lease]] });
    }
  }
}

const names = ({ first, count }) => Array.from({ length: count }, (_, index) => Number(first) + index);

const commands = {
  client({ addr, token_file: tokenFile, timeout_ms: timeoutMs }) {
    client = new Client(addr, { tokenFile: tokenFile ?? undefined, timeoutMs: timeoutMs ?? undefined });
  },
  async gateway({ owner, ttl_ms: ttlMs, linger_ms: lingerMs }) {
    gateway = await client.gateway(owner, { ttlMs: ttlMs ?? undefined, lingerMs: lingerMs ?? undefined });
  },
  connect: ({ connection, session }) => connect(connection, BigInt(session[0]), BigInt(session[1])),
  close: ({ connection }) => close(connection),
  async connect_many({ auth_key_id: authKeyId, ...range }) {
    const failed = {};
    const all = names(range).map((id) => connect(String(id), BigInt(authKeyId), BigInt(id)));
    const results = await Promise.allSettled(all);
    const errors = results.filter(({ status }) => status === "rejected").map(({ reason }) => failure(reason).reason);
    for (const reason of errors) failed[reason] = (failed[reason] ?? 0) + 1;
    return { connected: results.length - errors.length, failed };
  },
  close_many(range) {
    for (const id of names(range)) close(String(id));
  },
  stop: () => gateway.stop(),
  mirror({ changes, ...filtered }) {
    mirror = client.mirror(filters(filtered));
    if (changes) void report(mirror.changes());
  },
  synced: () => mirror.synced(),
  wait_until: ({ place }) => mirror.waitUntil({ partition: place.partition, position: BigInt(place.position) }),
  watch({ start, placements, heartbeat_ms: heartbeatMs, ...filtered }) {
    const from = start === "snapshot" ? { snapshot: true } : start === "now" ? {} : { after: start };
    const rest = { placements: placements ?? false, heartbeatMs: heartbeatMs ?? undefined };
    void follow(client.watch({ ...from, ...rest, ...filters(filtered) }));
  },
  pause: ({ what }) => pause(what),
  resume: ({ what }) => resume(what),
  dump() {
    const connections = Object.fromEntries([...open].map(([name, { session }]) => [name, pair(session)]));
    const sessions =
      mirror &&
      [...mirror].map(({ session, leaseId }) => [...pair(session), String(leaseId), mirror.holderOf(session)?.owner ?? null]);
    return {
      gateway: gateway ? { lease: String(gateway.leaseId), connections } : null,
      mirror: mirror ? { sessions, synced: mirror.isSynced, staleness_ms: Math.ceil(mirror.stalenessMs) } : null,
    };
  },
};

function failure(error) {
  const message = String(error?.message ?? error);
  if (error instanceof Cancelled) return { reason: "CANCELLED", message };
  if (error instanceof SessionElsewhereError) {
    return { reason: "SESSION_ELSEWHERE", message, lease: String(error.leaseId) };
  }
  if (error?.reason) return { reason: error.reason, message };
  if (error?.code === 4) return { reason: "TIMEOUT", message };
  return { reason: "OTHER", message: error?.stack ?? message };
}

async function run({ id, do: name, ...fields }) {
  try {
    write({ id, ok: (await commands[name](fields)) ?? {} });
  } catch (error) {
    write({ id, error: failure(error) });
  }
}

createInterface({ input: process.stdin })
  .on("line", (line) => void run(JSON.parse(line)))
  .on("close", () => process.exit(0));
