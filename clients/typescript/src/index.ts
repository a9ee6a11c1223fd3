export { Client, MAX_BATCH } from "./client";
export type { ClientOptions, Created, CreateOptions, Destroyed, DestroyOptions, Located } from "./client";
export { SessionElsewhereError, SessiondError } from "./errors";
export { Gateway } from "./gateway";
export type { ConnectOptions, GatewayOptions } from "./gateway";
export { Connection } from "./connection";
export type { CloseReason } from "./connection";
export { Lease } from "./lease";
export type { LeaseEvent } from "./lease";
export type { LeaseGrant, LeaseHolder, LeaseStatus, ListLeasesOptions } from "./lease-types";
export type { Logger } from "./logger";
export { Mirror } from "./mirror";
export type { MirrorHolder, MirrorOptions } from "./mirror";
export type { MirrorChange } from "./changes";
export type { Place } from "./place";
export { SessionKey } from "./session";
export type { SessionId } from "./session";
export { Watch } from "./watch";
export type { SessionFilters, WatchOptions } from "./watch";
export type {
  DestroyReason,
  PlainUpdate,
  ResetReason,
  SessionEvent,
  SnapshotSession,
  WatchUpdate,
} from "./updates";
