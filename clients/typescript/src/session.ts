/** The 64 bits of an id, or an error that says what is wrong with it. */
function id64(name: string, id: bigint): bigint {
  if (typeof id !== "bigint") throw new TypeError(`${name} must be a bigint, such as 42n: got ${String(id)}`);
  const signed = BigInt.asIntN(64, id);
  if (signed !== id && BigInt.asUintN(64, id) !== id) throw new RangeError(`${name} does not fit into 64 bits: ${id}`);
  return signed;
}

/** What names a session. `authKeyId` is 0 if the fleet has no auth keys. */
export interface SessionId {
  readonly sessionId: bigint;
  readonly authKeyId?: bigint;
}

/**
 * The key of a session: two signed 64-bit ids.
 *
 * An unsigned id of 2^63 or more becomes the signed id with the same 64 bits. Ids that do not fit into 64 bits are
 * refused with a RangeError.
 */
export class SessionKey implements SessionId {
  readonly authKeyId: bigint;
  readonly sessionId: bigint;

  constructor(authKeyId: bigint, sessionId: bigint) {
    this.authKeyId = id64("authKeyId", authKeyId);
    this.sessionId = id64("sessionId", sessionId);
  }

  /** Returns the key of `session`. */
  static of(session: SessionId): SessionKey {
    return session instanceof SessionKey ? session : new SessionKey(session.authKeyId ?? 0n, session.sessionId);
  }

  /** Returns whether `other` is the same session. */
  equals(other: SessionId): boolean {
    const { authKeyId, sessionId } = SessionKey.of(other);
    return this.authKeyId === authKeyId && this.sessionId === sessionId;
  }

  /** Returns text that is the same for equal keys only, for example as the key of a Map. */
  toString(): string {
    return `${this.authKeyId}/${this.sessionId}`;
  }
}

/** The two id lists of a batch. Leaves the auth keys out if all are 0, which halves the request. */
export function idLists(sessions: readonly SessionKey[]): { sessionIds: bigint[]; authKeyIds: bigint[] } {
  return {
    sessionIds: sessions.map((session) => session.sessionId),
    authKeyIds: sessions.every((session) => session.authKeyId === 0n) ? [] : sessions.map((session) => session.authKeyId),
  };
}

/** Returns signed filter ids, after checking that they fit into 64 bits. */
export function filterIds(name: string, ids: readonly bigint[] | undefined): bigint[] {
  return (ids ?? []).map((id) => id64(name, id));
}

/** Returns the id of a lease as the unsigned number that it is on the wire. */
export function leaseNumber(leaseId: bigint | undefined): bigint {
  return BigInt.asUintN(64, id64("leaseId", leaseId ?? 0n));
}
