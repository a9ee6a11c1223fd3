/** A lease and its owner: which gateway holds a session. */
export interface LeaseHolder {
  readonly leaseId: bigint;
  /** By convention the address at which the gateway can be reached. It never changes. */
  readonly owner: string;
}

/** A lease that was granted. */
export interface LeaseGrant {
  readonly leaseId: bigint;
  /** How long the lease lives without being kept alive. */
  readonly ttlMs: number;
}

/** A lease that has not ended. */
export interface LeaseStatus extends LeaseHolder {
  readonly ttlMs: number;
  /** The time until the lease ends unless it is kept alive. */
  readonly expiresInMs: number;
  readonly sessionCount: bigint;
  /** Whether the lease was revoked with a linger. It cannot be kept alive then. */
  readonly lingers: boolean;
}

/** Which leases to list. A lease must match every filter. */
export interface ListLeasesOptions {
  readonly owner?: string;
  readonly leaseIds?: readonly bigint[];
  /** The most leases that one call returns: 1,000 by default, at most 10,000. */
  readonly pageSize?: number;
}
