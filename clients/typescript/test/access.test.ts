import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Server as GrpcServer, ServerCredentials, status, type handleUnaryCall } from "@grpc/grpc-js";

import { Client, type SessiondError, type WatchUpdate } from "../src";
import { HasSessionRequest, HasSessionResponse } from "../src/generated/sessiond/v1/session_service";
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

function replace(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

test("a rotated token is used by the next call and the next stream", async (t) => {
  const folder = temporaryFolder(t);
  const access = join(folder, "access");
  const tokenFile = join(folder, "token");
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

test("nothing fails when a token is replaced before the old one ends", async (t) => {
  const folder = temporaryFolder(t);
  const access = join(folder, "access");
  const tokenFile = join(folder, "token");
  let old = newToken(folder, "first");
  replace(access, old.line);
  replace(tokenFile, old.token);
  const server = await Server.start(t, ["--storage", "memory:", "--access-file", access]);
  const client = new Client(server.address, { tokenFile });
  const watch = client.watch();
  const mirror = client.mirror();
  // Long enough for a busy machine, and short enough for keep-alives with each token.
  const gateway = await client.gateway("gw-1", { ttlMs: 6000 });
  cleanUp(t, async () => {
    await gateway.stop(0);
    mirror.close();
    watch.close();
    client.close();
  });
  const next = async <Type extends WatchUpdate["type"]>(type: Type): Promise<Extract<WatchUpdate, { type: Type }>> => {
    for (;;) {
      const { value } = await watch.next();
      if (value?.type === type) return value as Extract<WatchUpdate, { type: Type }>;
    }
  };
  await next("subscribed");
  await mirror.synced();
  const connection = await gateway.connect({ sessionId: 1n });
  const lease = gateway.leaseId;
  let closed = "";
  void connection.closed.then(({ type }) => (closed = type));

  for (const name of ["second", "third"]) {
    const fresh = newToken(folder, name);
    replace(access, `${old.line}\n${fresh.line}`);
    using other = new Client(server.address, { token: fresh.token });
    await eventually("the new token is accepted", () =>
      other.has({ sessionId: 1n }).catch((error: unknown) => {
        assert.equal((error as SessiondError).reason, "TOKEN_UNKNOWN");
        return false;
      }),
    );
    replace(tokenFile, fresh.token);
    replace(access, fresh.line);
    const { error, retryInMs } = await next("disconnected");
    assert.equal(error.reason, "TOKEN_UNKNOWN");
    assert.equal(error.isRetryable, true);
    assert.equal(error.hasNewToken, true);
    assert.equal(retryInMs, 0);
    await next("subscribed");
    assert.equal(await client.has({ sessionId: 1n }), true);
    await gateway.connect({ sessionId: name === "second" ? 2n : 3n });
    old = fresh;
  }
  const { place } = await client.create({ sessionId: 4n }, { withPlace: true });
  await mirror.waitUntil(place ?? assert.fail("no place"));
  assert.equal(closed, "");
  assert.equal(gateway.leaseId, lease);
});

for (const replacement of ["new", "wrong", undefined]) {
  const what = replacement === undefined ? "a token that was not replaced" : `a token that was replaced by a ${replacement} one`;
  test(`a call is retried once at most: ${what}`, async (t) => {
    const tokenFile = join(temporaryFolder(t), "token");
    replace(tokenFile, "old");
    const sent: unknown[] = [];
    const server = new GrpcServer();
    cleanUp(t, () => {
      server.forceShutdown();
    });
    const has: handleUnaryCall<HasSessionRequest, HasSessionResponse> = ({ metadata }, answer) => {
      sent.push(metadata.get("authorization")[0]);
      if (sent.at(-1) === "Bearer new") {
        answer(null, { exists: true });
        return;
      }
      if (replacement !== undefined) replace(tokenFile, replacement);
      answer({ code: status.UNAUTHENTICATED, details: "unknown token" });
    };
    server.register(
      "/sessiond.v1.SessionService/HasSession",
      has,
      (message: HasSessionResponse) => Buffer.from(HasSessionResponse.encode(message).finish()),
      (bytes) => HasSessionRequest.decode(bytes),
      "unary",
    );
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
        if (error) reject(error);
        else resolve(bound);
      });
    });
    using client = new Client(`http://127.0.0.1:${port}`, { tokenFile });
    const answer = client.has({ sessionId: 1n });
    if (replacement === "new") assert.equal(await answer, true);
    else await assert.rejects(answer, { code: status.UNAUTHENTICATED, isRetryable: false });
    assert.deepEqual(sent, ["Bearer old", ...(replacement === undefined ? [] : [`Bearer ${replacement}`])]);
  });
}

test("a missing or malformed token is refused at once", (t) => {
  const folder = temporaryFolder(t);
  const address = "http://127.0.0.1:1";
  assert.throws(() => new Client(address, { tokenFile: join(folder, "missing") }), {
    code: status.INVALID_ARGUMENT,
    message: /cannot read the token in .*ENOENT/,
  });
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
