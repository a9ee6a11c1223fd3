// The ten lines of the README, as a user writes them. Compiled as CommonJS and as an ES module.
import { once } from "node:events";
import { connect, createServer, type AddressInfo } from "node:net";

import { Client } from "@sessiond/client";

async function main(): Promise<void> {
  const client = new Client(process.env["SESSIOND_ADDR"] ?? "http://127.0.0.1:50051");
  const gateway = await client.gateway("gw-1:8443");

  const server = createServer(async (socket) => {
    const left = new AbortController();
    socket.on("close", () => left.abort());
    const connection = await gateway.connect({ authKeyId: 0n, sessionId: 42n }, { signal: left.signal });
    connection.closed.then(() => socket.end());
    socket.resume().write("hello");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  const mirror = client.mirror();
  await mirror.synced();
  const changes = mirror.changes();
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  await once(socket, "data");
  await changes.next();
  const { lease } = await client.lookup({ sessionId: 42n });
  if (lease?.owner !== "gw-1:8443") throw new Error(`held by ${lease?.owner}`);
  if (mirror.holderOf({ sessionId: 42n })?.owner !== lease.owner) throw new Error("the mirror is wrong");
  socket.destroy();
  const { value: change } = await changes.next();
  if (change?.type !== "destroyed") throw new Error(`got ${change?.type}`);

  mirror.close();
  await gateway.stop();
  client.close();
  server.close();
}

void main();
