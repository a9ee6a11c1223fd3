import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { Client } from "../src";
import { cleanUp } from "./cleanup";
import { eventually } from "./eventually";
import { binary, Server, temporaryFolder } from "./server";

function newToken(folder: string, name: string): { token: string; line: string } {
  const path = join(folder, name);
  const line = execFileSync(binary(), ["token", "new", "--name", "gw", "--scopes", "read,write,observe", "--out", path], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  return { token: readFileSync(path, "utf8").trim(), line };
}

test("a rotated token is used by the next call and the next stream", async (t) => {
  const folder = temporaryFolder(t);
  const access = join(folder, "access");
  const tokenFile = join(folder, "token");
  const replace = (path: string, text: string) => {
    writeFileSync(`${path}.new`, text);
    renameSync(`${path}.new`, path);
  };
  const old = newToken(folder, "old");
  const fresh = newToken(folder, "fresh");
  replace(access, old.line);
  replace(tokenFile, `${old.token}\n`);
  const server = await Server.start(t, ["--storage", "memory:", "--access-file", access]);
  const client = new Client(server.address, { tokenFile });
  cleanUp(t, () => {
    client.close();
  });
  assert.equal(await client.has({ sessionId: 1n }), false);

  replace(access, fresh.line);
  await eventually("the old token is refused", () =>
    client.has({ sessionId: 1n }).then(
      () => false,
      (error: unknown) => (error as { reason?: string }).reason === "TOKEN_UNKNOWN",
    ),
  );
  const watch = client.watch();
  await assert.rejects(watch.next(), { code: status.UNAUTHENTICATED });
  replace(tokenFile, `${fresh.token}\n`);
  assert.equal(await client.has({ sessionId: 1n }), false);
  assert.equal((await watch.next()).value?.type, "subscribed");
  watch.close();
});

test("a missing or malformed token is refused at once", (t) => {
  const folder = temporaryFolder(t);
  const address = "http://127.0.0.1:1";
  assert.throws(() => new Client(address, { tokenFile: join(folder, "missing") }), /ENOENT/);
  assert.throws(() => new Client(address, { token: "two words" }), { code: status.INVALID_ARGUMENT });
  assert.throws(() => new Client(address, { token: "a", tokenFile: "b" }), { code: status.INVALID_ARGUMENT });
});

test("TLS checks the server and presents a client certificate", async (t) => {
  const folder = temporaryFolder(t);
  const path = (name: string) => join(folder, name);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: folder, stdio: "ignore" });
  const certificate = (name: string) => {
    const request = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", `/CN=${name}`];
    const names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "2"];
    const signed = name === "ca" ? [] : ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE"];
    openssl("req", "-x509", ...request, ...names, ...signed, "-keyout", `${name}.key`, "-out", `${name}.pem`);
  };
  for (const name of ["ca", "server", "gw"]) certificate(name);
  const server = await Server.start(t, [
    "--storage",
    "memory:",
    ...["--tls-cert", path("server.pem"), "--tls-key", path("server.key"), "--tls-client-ca", path("ca.pem")],
  ]);
  const address = server.address.replace("http://127.0.0.1", "https://localhost");
  const tlsCa = readFileSync(path("ca.pem"));
  const tlsIdentity = { cert: readFileSync(path("gw.pem")), key: readFileSync(path("gw.key")) };
  using client = new Client(address, { tlsCa, tlsIdentity });
  assert.equal((await client.create({ sessionId: 1n })).created, true);
  const watch = client.watch({ snapshot: true });
  assert.equal((await watch.next()).value?.type, "subscribed");
  watch.close();
  using stranger = new Client(address, { tlsIdentity, timeoutMs: 1000 });
  await assert.rejects(stranger.has({ sessionId: 1n }));
  assert.throws(() => new Client(server.address, { tlsCa }), { code: status.INVALID_ARGUMENT });
});
