import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Metadata, status } from "@grpc/grpc-js";

import { SessiondError, SessionElsewhereError } from "../src";
import { closedError, fromServiceError, gatewayStopped, protocolError, registryLost } from "../src/errors";
import { ErrorInfo, RetryInfo, Status } from "../src/generated/google/rpc/details";
import { REASONS } from "../src/generated/reasons";
import { ErrorReason } from "../src/generated/sessiond/v1/error_reason";

const PROTO = join(__dirname, "../../../../proto/sessiond/v1/error_reason.proto");

function serviceError(code: status, reason: string, domain = "sessiond"): SessiondError {
  const info = ErrorInfo.encode({ reason, domain }).finish();
  const retry = RetryInfo.encode({ retryDelay: { seconds: 1n, nanos: 500_000_000 } }).finish();
  const details = [
    { typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: Buffer.from(info) },
    { typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: Buffer.from(retry) },
  ];
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(Status.encode({ code, message: "", details }).finish()));
  return fromServiceError(Object.assign(new Error("draining"), { code, details: "draining", metadata }));
}

test("the table has every reason of the proto", () => {
  const names = Object.keys(ErrorReason).filter((name) => name !== "UNSPECIFIED");
  assert.deepEqual(Object.keys(REASONS).sort(), names.sort());
  assert.ok(names.length > 30);
});

test("each reason is retried as its comment says", () => {
  const words = { never: "no", backoff: "with backoff", "retry-info": "after RetryInfo" };
  const proto = readFileSync(PROTO, "utf8").replaceAll(/\s*\/\/\s*/g, " ");
  for (const [name, retry] of Object.entries(REASONS)) {
    assert.match(proto, new RegExp(`Retry: ${words[retry]}\\.\\s+ERROR_REASON_${name} = `), name);
    assert.equal(serviceError(status.UNKNOWN, name).isRetryable, retry !== "never", name);
  }
});

test("reason and delay are read from the status", () => {
  const error = serviceError(status.UNAVAILABLE, "A_NEWER_REASON");
  assert.equal(error.reason, "A_NEWER_REASON");
  assert.equal(error.retryAfterMs, 1500);
  assert.equal(error.isRetryable, true);
  assert.equal(error.message, "UNAVAILABLE: draining");
  assert.equal(serviceError(status.RESOURCE_EXHAUSTED, "QUOTA", "proxy.example").reason, undefined);
});

test("errors without a known reason are retried by their code", () => {
  for (const code of [status.CANCELLED, status.UNKNOWN, status.INTERNAL, status.UNAVAILABLE, status.ABORTED]) {
    assert.equal(new SessiondError(code, "").isRetryable, true, status[code]);
  }
  for (const code of [status.INVALID_ARGUMENT, status.PERMISSION_DENIED, status.UNIMPLEMENTED]) {
    assert.equal(new SessiondError(code, "").isRetryable, false, status[code]);
  }
});

test("a gone lease is told from other failed preconditions", () => {
  assert.equal(serviceError(status.FAILED_PRECONDITION, "LEASE_LINGERS").isLeaseGone, true);
  assert.equal(serviceError(status.FAILED_PRECONDITION, "OTHER").isLeaseGone, false);
  assert.equal(serviceError(status.UNAVAILABLE, "LEASE_GONE").isLeaseGone, false);
  // A proxy may strip the details.
  assert.equal(new SessiondError(status.NOT_FOUND, "").isLeaseGone, true);
});

// The clients of other languages have the same table in their tests.
test("errors of the client have a code and perhaps a reason", () => {
  const table: [SessiondError, status, string | undefined][] = [
    [new SessionElsewhereError(7n), status.FAILED_PRECONDITION, "SESSION_ELSEWHERE"],
    [registryLost(), status.FAILED_PRECONDITION, "REGISTRY_LOST"],
    [gatewayStopped(), status.FAILED_PRECONDITION, "GATEWAY_STOPPED"],
    [closedError("client"), status.CANCELLED, "CLOSED"],
    [protocolError(""), status.UNIMPLEMENTED, undefined],
  ];
  for (const [error, code, reason] of table) {
    assert.deepEqual([error.code, error.reason], [code, reason], error.message);
    assert.equal(error.isRetryable, false, error.message);
    assert.equal(error.isLeaseGone, false, error.message);
  }
});
