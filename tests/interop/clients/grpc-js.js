// Makes the calls that clients.py requests, with grpc-js.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { createRequire } = require("node:module");

const config = JSON.parse(process.argv[2]);
const load = createRequire(path.join(config.modules, "/"));
const grpc = load("@grpc/grpc-js");
const loader = load("@grpc/proto-loader");
const protobuf = load("protobufjs");

// The options that docs/gateways.md recommends.
const options = { longs: String, defaults: true, enums: String, oneofs: true };
const files = ["sessiond/v1/session_service.proto", "sessiond/v1/lease_service.proto"];
const { sessiond } = grpc.loadPackageDefinition(loader.loadSync(files, { ...options, includeDirs: config.includes }));

const details = new protobuf.Root();
details.resolvePath = (_, target) =>
  config.includes.map((folder) => path.join(folder, target)).find((file) => fs.existsSync(file));
details.loadSync(["google/rpc/status.proto", "google/rpc/error_details.proto"]);

const channel = { ...config.options, "grpc.service_config": config.serviceConfig };
if (config.compress) {
  channel["grpc.default_compression_algorithm"] = grpc.compressionAlgorithms.gzip;
}
const credentials = grpc.credentials.createInsecure();
const stubs = [sessiond.v1.SessionService, sessiond.v1.LeaseService].map(
  (Service) => new Service(config.address, credentials, channel),
);

function write(id, fields) {
  process.stdout.write(JSON.stringify({ id, ...fields }) + "\n");
}

function end(error) {
  const packed = error.metadata?.get("grpc-status-details-bin")[0];
  const status = packed ? details.lookupType("google.rpc.Status").decode(packed) : { details: [] };
  const shown = status.details.map(({ type_url: url, value }) => {
    const type = url.split("/").pop();
    return [type, details.lookupType(type).toObject(details.lookupType(type).decode(value), { longs: String })];
  });
  return { code: grpc.status[error.code], message: error.details, details: Object.fromEntries(shown) };
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method, request, timeout } = JSON.parse(line);
  const stub = stubs.find((stub) => method in stub);
  // grpc-js ignores waitForReady in the service config.
  const metadata = new grpc.Metadata({ waitForReady: true });
  if (method === "Subscribe") {
    const stream = stub.Subscribe(request, metadata);
    stream.on("data", (message) => write(id, { message }));
    stream.on("error", (error) => write(id, { end: end(error) }));
    return;
  }
  stub[method](request, metadata, { deadline: Date.now() + timeout * 1000 }, (error, message) => {
    if (!error) write(id, { message });
    write(id, { end: error ? end(error) : { code: "OK" } });
  });
}).on("close", () => process.exit(0));
