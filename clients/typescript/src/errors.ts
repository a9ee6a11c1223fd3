import { status as Code, type ServiceError } from "@grpc/grpc-js";

import { toMs } from "./duration";
import { ErrorInfo, RetryInfo, Status } from "./generated/google/rpc/details";
import { REASONS } from "./generated/reasons";

const DOMAIN = "sessiond";

/** Codes after which a retry can help, if the error has no reason that this version knows. */
const TRANSIENT: ReadonlySet<Code> = new Set([
  Code.CANCELLED,
  Code.UNKNOWN,
  Code.DEADLINE_EXCEEDED,
  Code.RESOURCE_EXHAUSTED,
  Code.ABORTED,
  Code.INTERNAL,
  Code.UNAVAILABLE,
  Code.DATA_LOSS,
]);

/** What {@link SessiondError} is made of. */
export interface SessiondErrorParts {
  readonly reason?: string | undefined;
  readonly retryAfterMs?: number | undefined;
  readonly isRetryable?: boolean;
  readonly hasNewToken?: boolean;
  readonly cause?: unknown;
}

/** Why a call or a watch failed. */
export class SessiondError extends Error {
  override readonly name: string = "SessiondError";
  /** The gRPC code. */
  readonly code: Code;
  /**
   * The server's reason in UPPER_SNAKE, such as LEASE_GONE, or one of the client's: SESSION_ELSEWHERE, REGISTRY_LOST,
   * GATEWAY_STOPPED or CLOSED. It does not change between versions, as messages may.
   */
  readonly reason: string | undefined;
  /** How long the server asks to wait before a retry. */
  readonly retryAfterMs: number | undefined;
  /** Whether the same call may succeed if it is retried later. */
  readonly isRetryable: boolean;
  /** Whether the token that was refused has been replaced in the `tokenFile` since: retry at once. */
  readonly hasNewToken: boolean;

  constructor(code: Code, message: string, parts: SessiondErrorParts = {}) {
    super(message, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.code = code;
    this.reason = parts.reason;
    this.retryAfterMs = parts.retryAfterMs;
    this.hasNewToken = parts.hasNewToken ?? false;
    const retry = parts.reason === undefined ? undefined : REASONS[parts.reason];
    const mayPass = retry === undefined ? TRANSIENT.has(code) : retry !== "never";
    this.isRetryable = parts.isRetryable ?? (this.hasNewToken || mayPass);
  }

  /**
   * Whether the call failed because its lease has ended or lingers. Grant a new lease and create the sessions again
   * under it.
   */
  get isLeaseGone(): boolean {
    // Only calls that name a lease return NOT_FOUND.
    if (this.code === Code.NOT_FOUND) return true;
    return this.code === Code.FAILED_PRECONDITION && (this.reason === "LEASE_GONE" || this.reason === "LEASE_LINGERS");
  }
}

/** A connection failed because its client is at another gateway by now. Close the connection. */
export class SessionElsewhereError extends SessiondError {
  override readonly name = "SessionElsewhereError";
  /** The lease that holds the session. */
  readonly leaseId: bigint;

  constructor(leaseId: bigint) {
    super(Code.FAILED_PRECONDITION, `the session is held elsewhere, under lease ${leaseId}: close the connection`, {
      reason: "SESSION_ELSEWHERE",
    });
    this.leaseId = leaseId;
  }
}

/** The server's answer does not follow the protocol. It may be another program or a newer sessiond. */
export function protocolError(message: string): SessiondError {
  return new SessiondError(Code.UNIMPLEMENTED, `unexpected answer from the server: ${message}`);
}

/** A gateway that was stopped is used. */
export function gatewayStopped(): SessiondError {
  return new SessiondError(Code.FAILED_PRECONDITION, "the gateway was stopped", { reason: "GATEWAY_STOPPED" });
}

/** The registry was replaced by a new one, or lost changes, while a mirror waited for a place. */
export function registryLost(): SessiondError {
  const message = "the registry was replaced or lost changes, so that the place means nothing";
  return new SessiondError(Code.FAILED_PRECONDITION, message, { reason: "REGISTRY_LOST" });
}

/** Something that was closed is used. */
export function closedError(what: string): SessiondError {
  return new SessiondError(Code.CANCELLED, `the ${what} is closed`, { reason: "CLOSED", isRetryable: false });
}

/** Returns any error of a call as a SessiondError. `isTokenOld` says whether the token that was sent has been replaced. */
export function fromServiceError(error: unknown, isTokenOld = (): boolean => false): SessiondError {
  if (error instanceof SessiondError) return error;
  if (!isServiceError(error)) {
    const message = error instanceof Error ? error.message : String(error);
    return new SessiondError(Code.INTERNAL, message, { isRetryable: false, cause: error });
  }
  const parts = { ...detailsOf(error), hasNewToken: error.code === Code.UNAUTHENTICATED && isTokenOld() };
  return new SessiondError(error.code, `${Code[error.code]}: ${error.details}`, { ...parts, cause: error });
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "metadata" in error;
}

function detailsOf(error: ServiceError): SessiondErrorParts {
  const bytes = error.metadata.get("grpc-status-details-bin")[0];
  if (!(bytes instanceof Uint8Array)) return {};
  let reason: string | undefined;
  let retryAfterMs: number | undefined;
  try {
    for (const { typeUrl, value } of Status.decode(bytes).details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) {
        const info = ErrorInfo.decode(value);
        if (info.domain === DOMAIN) reason = info.reason;
      } else if (typeUrl.endsWith("/google.rpc.RetryInfo")) {
        retryAfterMs = toMs(RetryInfo.decode(value).retryDelay);
      }
    }
  } catch {
    // A proxy may have put anything there. The code is enough.
  }
  return { reason, retryAfterMs };
}
