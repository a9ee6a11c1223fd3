// The TypeScript client, broken on purpose. Each function breaks one promise, and MUTANTS in suite.py says what notices it.
import { createRequire } from "node:module";

const load = createRequire(new URL("../../../clients/typescript/dist/", import.meta.url));
const { Client } = load("./client.js");
const { Gateway } = load("./gateway.js");
const { Lease } = load("./lease.js");
const { LeaseStream } = load("./lease-stream.js");
const { Placements } = load("./placements.js");
const { Reconciler } = load("./reconciler.js");
const { ResumingStream } = load("./resuming-stream.js");
const { SessionKey } = load("./session.js");
const { Watch } = load("./watch.js");
const token = load("./token.js");

/** Registers sessions with whatever lease they are under now as only_from. */
export function takes_from_anyone() {
  const take = Client.prototype.batchTake;
  Client.prototype.batchTake = async function (sessions, leaseId, options) {
    const { leaseIds } = await this.batchLookup(sessions);
    const all = { created: [], leaseIds: [], places: [] };
    for (const [index, session] of sessions.entries()) {
      const answer = await take.call(this, [session], leaseId, { ...options, onlyFrom: leaseIds[index] });
      all.created.push(...answer.created);
      all.leaseIds.push(...answer.leaseIds);
    }
    return all;
  };
}

/** Does not end sessions that appear without a connection. */
export function leaves_ghosts() {
  LeaseStream.prototype.hasAppeared = () => undefined;
}

export function destroys_under_any_lease() {
  const destroy = Client.prototype.batchDestroy;
  Client.prototype.batchDestroy = function (sessions) {
    return destroy.call(this, sessions, {});
  };
}

/** Ignores that sessions leave its lease. */
export function never_closes() {
  LeaseStream.prototype.suspectLoss = () => undefined;
}

/** Does not register its sessions again under a new lease. */
export function restores_nothing() {
  Gateway.prototype.leaseChanged = function () {
    const { id, isHeld } = this.parts.lease;
    if (!isHeld || id === this.streamedLease) return;
    this.streamedLease = id;
    this.stream.close();
    this.stream = this.openStream();
  };
}

export function closes_all_when_the_lease_is_lost() {
  Reconciler.prototype.checkLease = () => Promise.resolve();
}

export function stops_without_linger() {
  const revoke = Lease.prototype.revoke;
  Lease.prototype.revoke = function () {
    return revoke.call(this, 0);
  };
}

export function first_close_ends_the_session() {
  const leave = Gateway.prototype.leave;
  Gateway.prototype.leave = function (entry, seat) {
    leave.call(this, entry, seat);
    void this.parts.client.batchDestroy([entry.key], { leaseId: this.parts.lease.id }).catch(() => undefined);
  };
}

/** After a break, starts with the next change. */
export function forgets_the_cursor() {
  const connect = ResumingStream.prototype.connect;
  ResumingStream.prototype.connect = function () {
    if (this.start?.$case === "cursor") this.start = undefined;
    return connect.call(this);
  };
}

export function keeps_the_old_token() {
  const tokenFile = token.tokenFile;
  token.tokenFile = (...options) => {
    const first = tokenFile(...options)();
    return () => first;
  };
}

/** The mirror keeps the lease that a session was created under. */
export function ignores_moves() {
  const put = Placements.prototype.put;
  Placements.prototype.put = function (record) {
    if (this.getPacked(record) === undefined) put.call(this, record);
  };
}

/** Session ids as numbers of 53 bits. */
export function rounds_ids() {
  const of = SessionKey.of;
  SessionKey.of = ({ authKeyId, sessionId }) =>
    of({ authKeyId: authKeyId ?? 0n, sessionId: BigInt.asIntN(64, BigInt(Number(sessionId))) });
}

/** The watch reads without waiting for its reader. */
export function reads_ahead() {
  const next = Watch.prototype.next;
  Watch.prototype.next = function () {
    this.ahead ??= [];
    this.readers ??= [];
    if (!this.isReadingAhead) {
      this.isReadingAhead = true;
      void (async () => {
        for (;;) {
          const item = await next.call(this);
          const reader = this.readers.shift();
          if (reader) reader(item);
          else this.ahead.push(item);
        }
      })();
    }
    if (this.ahead.length > 0) return Promise.resolve(this.ahead.shift());
    return new Promise((resolve) => this.readers.push(resolve));
  };
}
