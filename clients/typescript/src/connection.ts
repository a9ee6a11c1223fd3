import type { SessionKey } from "./session";
import type { DestroyReason } from "./updates";

/**
 * Why a connection must be closed.
 *
 * - `moved`: its client has connected elsewhere, under `leaseId`.
 * - `destroyed`: someone else has destroyed its session. The reason is undefined if that happened while the gateway could
 *   not follow the registry.
 * - `stopped`: the gateway stops.
 * - `closed`: it was closed with {@link Connection.close} or its signal.
 */
export type CloseReason =
  | { readonly type: "moved"; readonly leaseId: bigint }
  | { readonly type: "destroyed"; readonly reason: DestroyReason | undefined }
  | { readonly type: "stopped" }
  | { readonly type: "closed" };

/** A client's connection to a gateway, returned by {@link Gateway.connect}. Its session lives until it is closed. */
export class Connection {
  /** Resolves when this connection has been or must be closed. Never rejects. */
  readonly closed: Promise<CloseReason>;
  private resolveClosed!: (reason: CloseReason) => void;
  private reason: CloseReason | undefined;

  /** @internal */
  constructor(
    readonly session: SessionKey,
    private readonly onClose: () => void,
  ) {
    this.closed = new Promise((resolve) => (this.resolveClosed = resolve));
  }

  /** Whether the connection is open. */
  get isOpen(): boolean {
    return this.reason === undefined;
  }

  /**
   * Says that the client has disconnected. Ends the session unless it has moved to another gateway, or another
   * connection of this gateway holds it too.
   */
  close(): void {
    if (this.end({ type: "closed" })) this.onClose();
  }

  /** Returns whether this ended the connection. @internal */
  end(reason: CloseReason): boolean {
    if (this.reason !== undefined) return false;
    this.reason = reason;
    this.resolveClosed(reason);
    return true;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
