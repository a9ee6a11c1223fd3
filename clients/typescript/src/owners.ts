import { Backoff } from "./backoff";
import { fromServiceError } from "./errors";
import type { Logger } from "./logger";
import { ListLeases } from "./methods";
import type { Transport } from "./transport";
import { Waiter } from "./wait";

/** How long a message of the stream may wait for the owners of its leases. */
const TIMEOUT_MS = 1000;
/** The most leases of one call. */
const MOST = 10_000;

/** The owners of leases, looked up once. */
export class Owners {
  private readonly known = new Map<bigint, string>();
  private readonly unknown = new Set<bigint>();
  private readonly waiter = new Waiter();
  private readonly backoff = new Backoff();
  private isRetrying = false;
  private isClosed = false;

  constructor(
    private readonly transport: Transport,
    private readonly logger: Logger,
  ) {}

  /** Returns the owner of a lease, if it is known. */
  get(leaseId: bigint): string | undefined {
    return this.known.get(leaseId);
  }

  /** Adds a lease whose owner is to be looked up. */
  want(leaseId: bigint): void {
    if (!this.known.has(leaseId)) this.unknown.add(leaseId);
  }

  /** Looks up the wanted owners: at most for a second, and then in the background. */
  async lookUp(): Promise<void> {
    if (this.unknown.size === 0 || this.isRetrying) return;
    const retryAfterMs = await this.tryOnce();
    if (retryAfterMs !== undefined) void this.retry(retryAfterMs);
  }

  /** Forgets a lease that no session is under. */
  forget(leaseId: bigint): void {
    this.known.delete(leaseId);
    this.unknown.delete(leaseId);
  }

  close(): void {
    this.isClosed = true;
    this.waiter.wake();
  }

  private async retry(retryAfterMs: number): Promise<void> {
    this.isRetrying = true;
    let waitMs: number | undefined = retryAfterMs;
    while (waitMs !== undefined && !this.isClosed) {
      await this.waiter.wait(performance.now() + waitMs);
      waitMs = await this.tryOnce();
    }
    this.isRetrying = false;
  }

  /** Returns how long to wait before a retry, or undefined if all owners are known. */
  private async tryOnce(): Promise<number | undefined> {
    const deadline = performance.now() + TIMEOUT_MS;
    try {
      while (this.unknown.size > 0 && !this.isClosed) {
        const leaseIds = [...this.unknown].slice(0, MOST);
        let pageToken = "";
        do {
          const timeoutMs = Math.max(1, deadline - performance.now());
          const request = { leaseIds, pageToken, owner: "", pageSize: MOST };
          const page = await this.transport.call(ListLeases, request, timeoutMs);
          for (const { lease } of page.leases) if (lease) this.known.set(lease.leaseId, lease.owner);
          pageToken = page.nextPageToken;
        } while (pageToken !== "");
        // A lease that is not listed has ended. Its sessions are about to go.
        for (const leaseId of leaseIds) this.unknown.delete(leaseId);
      }
      this.backoff.reset();
      return undefined;
    } catch (thrown) {
      const error = fromServiceError(thrown);
      this.logger.warn(`cannot look up the owners of leases, retrying: error="${error.message}"`);
      return this.backoff.afterFailure(error.retryAfterMs);
    }
  }
}
