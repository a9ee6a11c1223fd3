import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { cleanUp } from "./cleanup";

/** A sessiond of a test. It ends with the test. */
export class Server {
  private constructor(
    private readonly args: readonly string[],
    private child: ChildProcess,
    readonly port: number,
  ) {}

  /** Starts a server on a free port. */
  static async start(test: TestContext, args: readonly string[] = ["--storage", "memory:"]): Promise<Server> {
    const { child, port } = await spawnServer(args, 0);
    const server = new Server(args, child, port);
    cleanUp(test, () => server.kill());
    return server;
  }

  get address(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Kills the server with SIGKILL and waits for its end. */
  async kill(): Promise<void> {
    await this.end("SIGKILL");
  }

  /** Ends the server in order. */
  async drain(): Promise<void> {
    await this.end("SIGTERM");
  }

  /** Starts it again on the same port. */
  async restart(): Promise<void> {
    this.child = (await spawnServer(this.args, this.port)).child;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  private async end(signal: NodeJS.Signals): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, "exit");
    this.child.kill(signal);
    await exited;
  }
}

/** Returns a folder that is removed after the test. */
export function temporaryFolder(test: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "sessiond-client-"));
  cleanUp(test, () => {
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}

/** The server to test against. */
export function binary(): string {
  const path = process.env["SESSIOND_BIN"];
  if (path === undefined) throw new Error("set SESSIOND_BIN to the path of the sessiond to test against");
  return path;
}

async function spawnServer(args: readonly string[], port: number): Promise<{ child: ChildProcess; port: number }> {
  const listen = ["serve", "--listen", `127.0.0.1:${port}`, "--admin-listen", "127.0.0.1:0"];
  const child = spawn(binary(), [...listen, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.resume();
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stderr })) {
    lines.push(line);
    const bound = /listening address="?127\.0\.0\.1:(\d+)/.exec(line)?.[1];
    if (bound === undefined) continue;
    child.stderr.resume();
    return { child, port: Number(bound) };
  }
  throw new Error(`the server did not start:\n${lines.join("\n")}`);
}
