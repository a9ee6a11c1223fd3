import assert from "node:assert/strict";
import { test } from "node:test";

import { exporter } from "./tracing";

import { Client } from "../src";
import { eventually } from "./eventually";
import { Server } from "./server";

test("OpenTelemetry's instrumentation traces calls and streams", async (t) => {
  const server = await Server.start(t);
  using client = new Client(server.address);
  const watch = client.watch();
  assert.equal((await watch.next()).value?.type, "subscribed");
  await client.create({ sessionId: 1n });
  assert.equal((await watch.next()).value?.type, "events");
  const gateway = await client.gateway("gw-1");
  (await gateway.connect({ sessionId: 2n })).close();
  await gateway.stop(0);
  watch.close();
  const expected = ["CreateSession", "BatchCreateSessions", "GrantLease", "RevokeLease", "Subscribe"];
  await eventually("all have a span", () => {
    const names = exporter.getFinishedSpans().map(({ name }) => name);
    return expected.every((method) => names.some((name) => name.endsWith(`/${method}`)));
  });
});
