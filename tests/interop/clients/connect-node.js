// Makes the calls that clients.py requests, with connect-node. The message types come from a FileDescriptorSet, so no
// code
// is generated.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { createRequire } = require("node:module");

const config = JSON.parse(process.argv[2]);
const load = createRequire(path.join(config.modules, "/"));
const { createFileRegistry, fromBinary, fromJson, toJson } = load("@bufbuild/protobuf");
const { FileDescriptorSetSchema, anyUnpack } = load("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = load("@connectrpc/connect");
const { compressionGzip, createGrpcTransport } = load("@connectrpc/connect-node");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, fs.readFileSync(config.descriptors)));
const transport = createGrpcTransport({
  baseUrl: `http://${config.address}`,
  compressMinBytes: 0,
  sendCompression: config.compress ? compressionGzip : null,
});
const clients = ["SessionService", "LeaseService"].map((name) => {
  const service = registry.getService(`sessiond.v1.${name}`);
  return { service, client: createClient(service, transport) };
});

function write(id, fields) {
  process.stdout.write(JSON.stringify({ id, ...fields }) + "\n");
}

function end(error) {
  const { code, rawMessage, details } = ConnectError.from(error);
  const shown = details.map(({ type, value }) => {
    const schema = registry.getMessage(type);
    return [type, toJson(schema, fromBinary(schema, value))];
  });
  const name = Code[code].replace(/(?!^)([A-Z])/g, "_$1").toUpperCase();
  return { code: name, message: rawMessage, details: Object.fromEntries(shown) };
}

async function call({ id, method, request, timeout }) {
  const { service, client } = clients.find(({ service }) => service.methods.some(({ name }) => name === method));
  const { input, output, localName } = service.methods.find(({ name }) => name === method);
  const show = (message) => toJson(output, message, { alwaysEmitImplicit: true, registry });
  try {
    if (method === "Subscribe") {
      for await (const message of client.subscribe(fromJson(input, request))) write(id, { message: show(message) });
    } else {
      const message = await client[localName](fromJson(input, request), { timeoutMs: timeout * 1000 });
      write(id, { message: show(message) });
    }
    write(id, { end: { code: "OK" } });
  } catch (error) {
    write(id, { end: end(error) });
  }
}

readline.createInterface({ input: process.stdin }).on("line", (line) => call(JSON.parse(line)))
  .on("close", () => process.exit(0));
