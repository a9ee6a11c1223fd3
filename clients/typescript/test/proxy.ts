import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Server as TcpServer, type Socket } from "node:net";
import type { TestContext } from "node:test";
import { cleanUp } from "./cleanup";

/** A TCP proxy in front of a server, which can cut, stall and delay connections. */
export class Proxy {
  private readonly pairs = new Set<readonly [Socket, Socket]>();
  private isCut = false;
  private isStalled = false;

  private constructor(
    private readonly listener: TcpServer,
    private readonly target: number,
  ) {
    listener.on("connection", (client) => {
      this.accept(client);
    });
  }

  static async start(test: TestContext, target: number): Promise<Proxy> {
    const listener = createServer();
    const proxy = new Proxy(listener, target);
    listener.listen(0, "127.0.0.1");
    await once(listener, "listening");
    cleanUp(test, () => {
      proxy.cut();
      listener.close();
    });
    return proxy;
  }

  get address(): string {
    return `http://127.0.0.1:${(this.listener.address() as AddressInfo).port}`;
  }

  /** Breaks all connections, and new ones at once. */
  cut(): void {
    this.isCut = true;
    for (const pair of this.pairs) for (const socket of pair) socket.destroy();
    this.pairs.clear();
  }

  /** Holds everything back that is sent from now on, on all connections. */
  stall(): void {
    this.isStalled = true;
    for (const pair of this.pairs) for (const socket of pair) socket.pause();
  }

  /** Undoes {@link cut} and {@link stall}: what was held back is delivered. */
  heal(): void {
    this.isCut = false;
    this.isStalled = false;
    for (const pair of this.pairs) for (const socket of pair) socket.resume();
  }

  private accept(client: Socket): void {
    if (this.isCut) {
      client.destroy();
      return;
    }
    const server = connect(this.target, "127.0.0.1");
    const pair = [client, server] as const;
    this.pairs.add(pair);
    for (const [from, to] of [pair, [server, client] as const]) {
      from.on("data", (bytes: Buffer) => {
        if (!to.destroyed) to.write(bytes);
      });
      from.on("error", () => undefined);
      from.on("close", () => {
        this.pairs.delete(pair);
        to.destroy();
      });
      if (this.isStalled) from.pause();
    }
  }
}
