// Packs the package, installs it into an empty folder, and runs a gateway there, as CommonJS and as an ES module.
// Needs the path of a sessiond in SESSIOND_BIN.
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), "sessiond-package-"));
const here = createRequire(import.meta.url);
const run = (command, args, options = {}) => execFileSync(command, args, { cwd: folder, stdio: "inherit", ...options });

/** Starts a server on a free port and returns its address. */
async function startServer() {
  const args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--storage", "memory:"];
  const server = spawn(process.env.SESSIOND_BIN, args, { stdio: ["ignore", "ignore", "pipe"] });
  for await (const line of createInterface({ input: server.stderr })) {
    const address = /listening address="?([\d.:]+)/.exec(line)?.[1];
    if (address === undefined) continue;
    server.stderr.resume();
    return { server, address: `http://${address}` };
  }
  throw new Error("the server did not start");
}

function check(address, type) {
  const project = join(folder, type);
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), JSON.stringify({ type }));
  cpSync(join(root, "scripts/consumer/gateway.ts"), join(project, "gateway.ts"));
  const tsc = join(dirname(here.resolve("typescript/package.json")), "bin/tsc");
  const flags = ["--strict", "--target", "es2022", "--module", "node16", "--types", "node"];
  run(process.execPath, [tsc, ...flags, join(project, "gateway.ts")]);
  run(process.execPath, [join(project, "gateway.js")], { env: { ...process.env, SESSIOND_ADDR: address }, timeout: 60_000 });
  console.log(`a gateway runs as ${type}`);
}

let server;
try {
  run("npm", ["pack", "--silent", "--pack-destination", folder, root]);
  const file = readdirSync(folder).find((name) => name.endsWith(".tgz"));
  writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true }));
  const types = `@types/node@${here("@types/node/package.json").version}`;
  run("npm", ["install", "--silent", "--no-package-lock", join(folder, file), types]);
  const started = await startServer();
  server = started.server;
  for (const type of ["commonjs", "module"]) check(started.address, type);
} finally {
  server?.kill();
  rmSync(folder, { recursive: true, force: true });
}
