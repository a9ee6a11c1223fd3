import type { SessiondError } from "./errors";
import {
  DestroyReason as ProtoDestroyReason,
  ResetReason as ProtoResetReason,
  SessionEventType,
} from "./generated/sessiond/v1/session_service";
import { protocolError } from "./errors";
import type { Place } from "./place";
import type { SessionKey } from "./session";
import type { PackedRecord, PackedRecords } from "./stream-message";

/** Why a session was destroyed. `released`: by its own gateway. */
export type DestroyReason = "requested" | "lease-expired" | "lease-revoked" | "released";

/** Why a stream lost its place. `snapshot-interrupted`: the connection broke within a snapshot. */
export type ResetReason =
  | "cursor-expired"
  | "cursor-foreign"
  | "lagged"
  | "storage-restarted"
  | "snapshot-interrupted"
  | "unknown";

/** A session in a snapshot. */
export interface SnapshotSession {
  readonly session: SessionKey;
  /** The lease that it is under. 0n if it is under none, or the watch has no placements. */
  readonly leaseId: bigint;
}

/** A change. The leases are 0n for none, or if the watch has no placements. */
export type SessionEvent =
  | { readonly type: "created"; readonly session: SessionKey; readonly leaseId: bigint }
  | {
      readonly type: "destroyed";
      readonly session: SessionKey;
      /** The lease that it was under. */
      readonly leaseId: bigint;
      readonly reason: DestroyReason;
    }
  | {
      readonly type: "moved";
      readonly session: SessionKey;
      readonly leaseId: bigint;
      readonly previousLeaseId: bigint;
    };

/** The updates that carry no sessions. */
export type PlainUpdate =
  /** A stream is open: the first update, and the first after each reconnect. */
  | {
      readonly type: "subscribed";
      /** It changes if the registry has lost its data and started over. */
      readonly registryId: string;
      readonly heartbeatMs: number;
      readonly cursor: string;
      readonly places: readonly Place[];
    }
  /** The snapshot is complete, and live events follow. */
  | { readonly type: "synced"; readonly sessionCount: bigint; readonly places: readonly Place[] }
  /** Nothing else was sent for one heartbeat interval. */
  | { readonly type: "heartbeat"; readonly places: readonly Place[] }
  /** The watch has lost its place. Discard everything; a snapshot follows, up to `synced`. */
  | { readonly type: "reset"; readonly reason: ResetReason }
  /** The connection is lost. The watch resumes where it stopped. */
  | { readonly type: "disconnected"; readonly error: SessiondError; readonly retryInMs: number };

/**
 * An update of a watch. With placements, updates carry places in the change log: one for each partition, or in `events`
 * that of the last event.
 *
 * To mirror the registry, start with a snapshot and apply the updates in order: insert the sessions of `snapshot`, apply
 * `events`, and discard everything on `reset`. From `synced` on, the mirror equals the registry.
 */
export type WatchUpdate =
  | PlainUpdate
  | { readonly type: "snapshot"; readonly sessions: readonly SnapshotSession[] }
  | { readonly type: "events"; readonly events: readonly SessionEvent[]; readonly places: readonly Place[] };

/** An update whose sessions are not decoded yet. */
export type PackedUpdate =
  | PlainUpdate
  | { readonly type: "snapshot"; readonly sessions: PackedRecords }
  | { readonly type: "events"; readonly events: PackedRecords; readonly places: readonly Place[] };

/** Decodes the sessions of an update. */
export function unpack(update: PackedUpdate): WatchUpdate {
  switch (update.type) {
    case "snapshot": {
      const sessions: SnapshotSession[] = [];
      update.sessions.forEachSession(({ session, leaseId }) => sessions.push({ session, leaseId }));
      return { type: "snapshot", sessions };
    }
    case "events": {
      const events: SessionEvent[] = [];
      update.events.forEachEvent((record) => events.push(toEvent(record)));
      return { type: "events", events, places: update.places };
    }
    default:
      return update;
  }
}

/** Returns the event that `record` holds. */
export function toEvent(record: PackedRecord): SessionEvent {
  const { session, leaseId } = record;
  switch (record.type) {
    case SessionEventType.CREATED:
      return { type: "created", session, leaseId };
    case SessionEventType.DESTROYED:
      return { type: "destroyed", session, leaseId, reason: destroyReason(record.reason) };
    case SessionEventType.MOVED:
      return { type: "moved", session, leaseId, previousLeaseId: record.previousLeaseId };
    default:
      // Skipping the event could leave the observer with a session that does not exist.
      throw protocolError("an event of an unknown type");
  }
}

/** A reason from a newer server counts as a request: what matters is that the session is gone. */
export function destroyReason(reason: ProtoDestroyReason): DestroyReason {
  switch (reason) {
    case ProtoDestroyReason.LEASE_EXPIRED:
      return "lease-expired";
    case ProtoDestroyReason.LEASE_REVOKED:
      return "lease-revoked";
    case ProtoDestroyReason.RELEASED:
      return "released";
    default:
      return "requested";
  }
}

/** Returns why the stream was reset. */
export function resetReason(reason: ProtoResetReason): ResetReason {
  switch (reason) {
    case ProtoResetReason.CURSOR_EXPIRED:
      return "cursor-expired";
    case ProtoResetReason.CURSOR_FOREIGN:
      return "cursor-foreign";
    case ProtoResetReason.LAGGED:
      return "lagged";
    case ProtoResetReason.STORAGE_RESTARTED:
      return "storage-restarted";
    default:
      return "unknown";
  }
}
