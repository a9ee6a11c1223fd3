// Measures what the documentation states. Needs a server at SESSIOND_ADDR, started with nothing else on it:
//   sessiond serve --storage memory: && npm run bench
import { Client, type WatchUpdate } from "../src";

const COUNT = 1_000_000;
const PASSES = 5;

async function main(): Promise<void> {
  const client = new Client(process.env["SESSIOND_ADDR"] ?? "http://127.0.0.1:50051");
  const { leaseId } = await client.grantLease(3_600_000, "bench");
  const sessions = Array.from({ length: COUNT }, () => ({ authKeyId: randomId(), sessionId: randomId() }));
  const watch = client.watch();
  await watch.next();
  const after = watch.cursor ?? "";
  watch.close();
  await client.batchCreate(sessions, { leaseId });

  await measureWatch(client, after, false);
  await measureWatch(client, after, true);
  await measureMirror(client, sessions);
  client.close();
}

/** Reads a million events that the server has retained. */
async function measureWatch(client: Client, after: string, placements: boolean): Promise<void> {
  const watch = client.watch({ after, placements });
  await watch.next();
  const begun = performance.now();
  let events = 0;
  let messages = 0;
  while (events < COUNT) {
    const { value }: IteratorResult<WatchUpdate, undefined> = await watch.next();
    if (value?.type !== "events") throw new Error(`unexpected ${value?.type ?? "end"}`);
    events += value.events.length;
    messages++;
  }
  const rate = events / ((performance.now() - begun) / 1000);
  watch.close();
  print(`watch${placements ? " with placements" : ""}`, `${thousands(rate)} events/s, ${Math.round(events / messages)} a message`);
}

async function measureMirror(client: Client, sessions: readonly { authKeyId: bigint; sessionId: bigint }[]): Promise<void> {
  globalThis.gc?.();
  const before = memory();
  const begun = performance.now();
  const mirror = client.mirror();
  await mirror.synced();
  const seconds = (performance.now() - begun) / 1000;
  globalThis.gc?.();
  print("mirror: sync", `${thousands(mirror.size / seconds)} sessions/s`);
  print("mirror: memory", `${((memory() - before) / mirror.size).toFixed(1)} bytes a session, table ${(mirror.byteLength / mirror.size).toFixed(1)}`);
  const absent = sessions.map(({ authKeyId, sessionId }) => ({ authKeyId: sessionId, sessionId: authKeyId }));
  shuffle(sessions as { authKeyId: bigint; sessionId: bigint }[]);
  for (const [name, keys, expected] of [["present", sessions, COUNT], ["absent", absent, 0]] as const) {
    let best = Infinity;
    for (let pass = 0; pass < PASSES; pass++) {
      let found = 0;
      const start = performance.now();
      for (const key of keys) if (mirror.has(key)) found++;
      best = Math.min(best, performance.now() - start);
      if (found !== expected) throw new Error(`found ${found}`);
    }
    print(`mirror: has, ${name}`, `${Math.round((best * 1e6) / keys.length)} ns`);
  }
  const start = performance.now();
  for (const key of sessions) mirror.holderOf(key);
  print("mirror: holderOf", `${Math.round(((performance.now() - start) * 1e6) / sessions.length)} ns`);
  mirror.close();
}

/** Everything that the process holds. Typed arrays count as external. */
function memory(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

function randomId(): bigint {
  return BigInt.asIntN(64, (BigInt(Math.floor(Math.random() * 2 ** 32)) << 32n) | BigInt(Math.floor(Math.random() * 2 ** 32)));
}

function shuffle<T>(items: T[]): void {
  for (let i = items.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [items[i], items[j]] = [items[j] as T, items[i] as T];
  }
}

function thousands(rate: number): string {
  return Math.round(rate).toLocaleString("en");
}

function print(what: string, figure: string): void {
  process.stdout.write(`${what}: ${figure}\n`);
}

void main();
