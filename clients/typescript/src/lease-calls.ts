import { toDuration, toMs } from "./duration";
import { protocolError } from "./errors";
import type { LeaseGrant } from "./lease-types";
import * as methods from "./methods";
import { leaseNumber } from "./session";
import type { Transport } from "./transport";

/** Grants a lease. */
export async function grantLease(
  transport: Transport,
  ttlMs: number,
  owner: string,
  timeoutMs: number,
): Promise<LeaseGrant> {
  const { leaseId, ttl } = await transport.call(methods.GrantLease, { ttl: toDuration(ttlMs), owner }, timeoutMs);
  if (leaseId === 0n) throw protocolError("a lease without an id");
  return { leaseId, ttlMs: requiredTtl(toMs(ttl)) };
}

/** Keeps a lease alive and returns its ttl. */
export async function keepLeaseAlive(transport: Transport, leaseId: bigint, timeoutMs: number): Promise<number> {
  const { ttl } = await transport.call(methods.KeepLeaseAlive, { leaseId: leaseNumber(leaseId) }, timeoutMs);
  return requiredTtl(toMs(ttl));
}

/** Revokes a lease, or lets it linger. */
export async function revokeLease(
  transport: Transport,
  leaseId: bigint,
  lingerMs: number,
  timeoutMs: number,
): Promise<bigint> {
  const linger = lingerMs === 0 ? undefined : toDuration(lingerMs);
  const request = { leaseId: leaseNumber(leaseId), linger };
  return (await transport.call(methods.RevokeLease, request, timeoutMs)).sessionsDestroyed;
}

function requiredTtl(ttlMs: number | undefined): number {
  if (ttlMs === undefined) throw protocolError("a lease without a ttl");
  return ttlMs;
}
