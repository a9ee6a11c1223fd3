// Measures what the documentation states, in CPU time of this process, so that other load does not count:
//   sessiond serve & npm run bench
import { Client, type WatchUpdate } from "../src";

const COUNT = 1_000_000;
const PASSES = 15;

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
  const seconds = stopwatch();
  let events = 0;
  let messages = 0;
  while (events < COUNT) {
    const { value }: IteratorResult<WatchUpdate, undefined> = await watch.next();
    if (value?.type !== "events") throw new Error(`unexpected ${value?.type ?? "end"}`);
    events += value.events.length;
    messages++;
  }
  const rate = events / seconds();
  watch.close();
  print(`watch${placements ? " with placements" : ""}`, `${thousands(rate)} events/s, ${Math.round(events / messages)} a message`);
}

async function measureMirror(client: Client, sessions: readonly { authKeyId: bigint; sessionId: bigint }[]): Promise<void> {
  const syncing = stopwatch();
  const mirror = client.mirror();
  await mirror.synced();
  print("mirror: sync", `${thousands(mirror.size / syncing())} sessions/s`);
  print("mirror: memory", `${(mirror.byteLength / mirror.size).toFixed(1)} bytes a session`);
  const absent = sessions.map(({ authKeyId, sessionId }) => ({ authKeyId: sessionId, sessionId: authKeyId }));
  for (const [name, keys, expected] of [["present", sessions, COUNT], ["absent", absent, 0]] as const) {
    let best = Infinity;
    for (let pass = 0; pass < PASSES; pass++) {
      let found = 0;
      const seconds = stopwatch();
      for (const key of keys) if (mirror.has(key)) found++;
      best = Math.min(best, seconds());
      if (found !== expected) throw new Error(`found ${found}`);
    }
    print(`mirror: has, ${name}`, `${Math.round((best * 1e9) / keys.length)} ns`);
  }
  const seconds = stopwatch();
  for (const key of sessions) mirror.holderOf(key);
  print("mirror: holderOf", `${Math.round((seconds() * 1e9) / sessions.length)} ns`);
  mirror.close();
}

/** Returns how many seconds of CPU this process has used since. */
function stopwatch(): () => number {
  const begun = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(begun);
    return (user + system) / 1e6;
  };
}

function randomId(): bigint {
  return BigInt.asIntN(64, (BigInt(Math.floor(Math.random() * 2 ** 32)) << 32n) | BigInt(Math.floor(Math.random() * 2 ** 32)));
}

function thousands(rate: number): string {
  return Math.round(rate).toLocaleString("en");
}

function print(what: string, figure: string): void {
  process.stdout.write(`${what}: ${figure}\n`);
}

void main();
