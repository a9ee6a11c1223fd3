// Code generated from error_reason.proto by npm run generate. DO NOT EDIT.

/** Whether to retry the same call: never, with backoff, or after the delay in the error's RetryInfo. */
export type Retry = "never" | "backoff" | "retry-info";

/** Every reason that this version knows. */
export const REASONS: Readonly<Record<string, Retry>> = {
  BAD_DURATION: "never",
  BATCH_TOO_LARGE: "never",
  CALL_TIMEOUT: "backoff",
  CERTIFICATE_UNKNOWN: "never",
  COMPRESSED_REQUEST: "never",
  CONNECTION_CLOSING: "retry-info",
  CREDENTIALS_MISSING: "never",
  DEADLINE_EXCEEDED: "backoff",
  INTERNAL: "backoff",
  LEASE_GONE: "never",
  MALFORMED_CURSOR: "never",
  MALFORMED_REQUEST: "never",
  OWNER_TOO_LONG: "never",
  RATE_LIMITED: "retry-info",
  REQUEST_TOO_LARGE: "never",
  SCOPE_MISSING: "never",
  SERVER_DRAINING: "retry-info",
  SESSION_ID_MISSING: "never",
  STORAGE_REFUSES_CHANGES: "retry-info",
  STORAGE_UNAVAILABLE: "retry-info",
  TOKEN_EXPIRED: "never",
  TOKEN_UNKNOWN: "never",
  TOO_MANY_FILTER_IDS: "never",
  TOO_MANY_LEASES: "retry-info",
  TOO_MANY_OBSERVERS: "retry-info",
  TOO_MANY_PENDING_BYTES: "retry-info",
  TOO_MANY_SESSIONS: "retry-info",
  TOO_MANY_TOTAL_FILTER_IDS: "retry-info",
  UNEQUAL_LISTS: "never",
  UNKNOWN_EVENT_TYPE: "never",
  UNKNOWN_METHOD: "never",
  LEASE_ID_MISSING: "never",
  LEASE_LINGERS: "never",
  MALFORMED_PAGE_TOKEN: "never",
};
