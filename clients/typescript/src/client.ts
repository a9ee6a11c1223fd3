import { credentials, status as Code, type Interceptor } from "@grpc/grpc-js";

import { parseAddress } from "./address";
import { toMs } from "./duration";
import { protocolError, SessiondError } from "./errors";
import { Gateway, type GatewayOptions } from "./gateway";
import { Lease } from "./lease";
import { grantLease, keepLeaseAlive, revokeLease } from "./lease-calls";
import type { LeaseGrant, LeaseHolder, LeaseStatus, ListLeasesOptions } from "./lease-types";
import { debugLogger, type Logger } from "./logger";
import * as methods from "./methods";
import { Mirror, type MirrorOptions } from "./mirror";
import { lastPlaces, toPlaces, type Place } from "./place";
import { idLists, leaseNumber, SessionKey, type SessionId } from "./session";
import { fixedToken, tokenFile } from "./token";
import { Transport, type GrpcChannel, type Target } from "./transport";
import { Watch, type WatchOptions } from "./watch";
import type { Lease as ProtoLease } from "./generated/sessiond/v1/session_service";

/** The most sessions that one call can name. Larger batches are split. */
export const MAX_BATCH = 65_536;

const DEFAULT_TIMEOUT_MS = 10_000;
const DEFAULT_CONNECT_TIMEOUT_MS = 5000;
const DEFAULT_TTL_MS = 30_000;

/** How a {@link Client} connects. */
export interface ClientOptions {
  /** The root certificates, in PEM, that the server's certificate must chain to. Node's own by default. */
  readonly tlsCa?: string | Uint8Array;
  /** The client certificate, with its intermediates, and its key, in PEM. */
  readonly tlsIdentity?: { readonly cert: string | Uint8Array; readonly key: string | Uint8Array };
  /** The token to send with every call. */
  readonly token?: string;
  /**
   * A file with the token. It is read again whenever it changes. A call or a stream whose token is refused and has been
   * replaced meanwhile is retried with the new one.
   */
  readonly tokenFile?: string;
  /** How long a call may take, including connecting and retries: 10 s by default. */
  readonly timeoutMs?: number;
  /**
   * How long connecting may take, including the TLS handshake: 5 s by default. It doubles with each failed attempt, up to
   * a minute.
   */
  readonly connectTimeoutMs?: number;
  /** Where to log. By default, NODE_DEBUG=sessiond prints to stderr. */
  readonly logger?: Logger;
  /** Interceptors of grpc-js for all calls and streams. */
  readonly interceptors?: readonly Interceptor[];
}

/** Options of a create. */
export interface CreateOptions {
  /** The lease to put the session under. An existing session moves to it. */
  readonly leaseId?: bigint;
  /**
   * Moves an existing session only if it is under this lease (0n: under none), or under one that has ended or lingers.
   */
  readonly onlyFrom?: bigint;
  /** Whether the answer has the place in the change log at or after which it is true. */
  readonly withPlace?: boolean;
}

/** Options of a destroy. */
export interface DestroyOptions {
  /** Destroys the session only if it is under this lease. */
  readonly leaseId?: bigint;
  /** Whether the answer has the place in the change log at or after which it is true. */
  readonly withPlace?: boolean;
}

/** The answer of {@link Client.create}. */
export interface Created {
  /** Whether this call created the session. */
  readonly created: boolean;
  /** The lease the session is under, if that is not the lease of the call. */
  readonly heldBy: LeaseHolder | undefined;
  readonly place: Place | undefined;
}

/** The answer of {@link Client.destroy}. */
export interface Destroyed {
  /** Whether this call destroyed the session. */
  readonly destroyed: boolean;
  readonly place: Place | undefined;
}

/** The answer of {@link Client.lookup}. */
export interface Located {
  readonly exists: boolean;
  /** The lease the session is under, if any. */
  readonly lease: LeaseHolder | undefined;
}

/**
 * A client of one registry. It connects on first use.
 *
 * Calls that the server refuses for a moment are tried up to five times. They fail with a
 * {@link SessiondError}.
 */
export class Client {
  private readonly target: Target;
  private readonly transport: Transport;
  private readonly timeoutMs: number;
  private readonly logger: Logger;

  /** `address` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. */
  constructor(address: string, options: ClientOptions = {}) {
    this.logger = options.logger ?? debugLogger;
    this.timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const { target, isTls } = parseAddress(address);
    if (!isTls && (options.tlsCa !== undefined || options.tlsIdentity !== undefined)) {
      throw invalid("the address does not use TLS: use https://HOST:PORT");
    }
    if (options.token !== undefined && options.tokenFile !== undefined) {
      throw invalid("token and tokenFile exclude each other");
    }
    this.target = {
      target,
      credentials: isTls ? tlsCredentials(options) : credentials.createInsecure(),
      token:
        options.tokenFile === undefined ? fixedToken(options.token) : tokenFile(options.tokenFile, this.logger),
      interceptors: options.interceptors ?? [],
      connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
    };
    this.transport = Transport.forCalls(this.target);
  }

  /** Creates a session, or moves an existing one to a lease. */
  async create(session: SessionId, options: CreateOptions = {}): Promise<Created> {
    const answer = await this.call(methods.CreateSession, {
      ...ids(session),
      leaseId: leaseNumber(options.leaseId),
      onlyFromLeaseId: optionalLease(options.onlyFrom),
      withPlace: options.withPlace ?? false,
    });
    return { created: answer.created, heldBy: toHolder(answer.lease), place: toPlace(answer.place) };
  }

  /**
   * Creates a session under `leaseId`, or moves it there if it is under `onlyFrom` (by default: under no lease).
   * Otherwise it stays, and `heldBy` says where. A lease that has ended or lingers protects nothing.
   */
  async take(session: SessionId, leaseId: bigint, options: Omit<CreateOptions, "leaseId"> = {}): Promise<Created> {
    return this.create(session, { onlyFrom: 0n, ...options, leaseId });
  }

  /** Returns whether a session exists. */
  async has(session: SessionId): Promise<boolean> {
    return (await this.call(methods.HasSession, { ...ids(session) })).exists;
  }

  /** Returns whether a session exists, and which lease it is under: which gateway holds it. */
  async lookup(session: SessionId): Promise<Located> {
    const { exists, lease } = await this.call(methods.LookupSession, { ...ids(session) });
    return { exists, lease: toHolder(lease) };
  }

  /** Destroys a session. */
  async destroy(session: SessionId, options: DestroyOptions = {}): Promise<Destroyed> {
    const answer = await this.call(methods.DestroySession, {
      ...ids(session),
      leaseId: leaseNumber(options.leaseId),
      withPlace: options.withPlace ?? false,
    });
    return { destroyed: answer.destroyed, place: toPlace(answer.place) };
  }

  /**
   * Creates many sessions. The answers are in the order of `sessions`, and `places` has the last place of each
   * partition.
   *
   * Each session is changed atomically, the batch is not: if a call fails, a part of it may have been done.
   */
  async batchCreate(
    sessions: readonly SessionId[],
    options: Omit<CreateOptions, "onlyFrom"> = {},
  ): Promise<{ created: boolean[]; places: Place[] }> {
    const answers = await this.inParts(sessions, async (part) => {
      const answer = await this.call(methods.BatchCreateSessions, {
        ...idLists(part),
        leaseId: leaseNumber(options.leaseId),
        onlyFromLeaseId: undefined,
        withPlace: options.withPlace ?? false,
      });
      expectAnswers(part, answer.created);
      return answer;
    });
    return {
      created: answers.flatMap(({ created }) => created),
      places: lastPlaces(answers.flatMap(({ places }) => toPlaces(places))),
    };
  }

  /** Does what {@link take} does for many sessions. `leaseIds` has the lease that each session is under afterwards. */
  async batchTake(
    sessions: readonly SessionId[],
    leaseId: bigint,
    options: Omit<CreateOptions, "leaseId"> = {},
  ): Promise<{ created: boolean[]; leaseIds: bigint[]; places: Place[] }> {
    const answers = await this.inParts(sessions, async (part) => {
      const answer = await this.call(methods.BatchCreateSessions, {
        ...idLists(part),
        leaseId: leaseNumber(leaseId),
        onlyFromLeaseId: leaseNumber(options.onlyFrom),
        withPlace: options.withPlace ?? false,
      });
      expectAnswers(part, answer.created, answer.leaseIds);
      return answer;
    });
    return {
      created: answers.flatMap(({ created }) => created),
      leaseIds: answers.flatMap(({ leaseIds }) => leaseIds),
      places: lastPlaces(answers.flatMap(({ places }) => toPlaces(places))),
    };
  }

  /** Returns whether each session exists, in order. */
  async batchHas(sessions: readonly SessionId[]): Promise<boolean[]> {
    const answers = await this.inParts(sessions, async (part) => {
      const { exists } = await this.call(methods.BatchHasSessions, idLists(part));
      expectAnswers(part, exists);
      return exists;
    });
    return answers.flat();
  }

  /** Returns whether each session exists and the lease it is under (0n: none), in order. */
  async batchLookup(sessions: readonly SessionId[]): Promise<{ exists: boolean[]; leaseIds: bigint[] }> {
    const answers = await this.inParts(sessions, async (part) => {
      const answer = await this.call(methods.BatchLookupSessions, idLists(part));
      expectAnswers(part, answer.exists, answer.leaseIds);
      return answer;
    });
    return {
      exists: answers.flatMap(({ exists }) => exists),
      leaseIds: answers.flatMap(({ leaseIds }) => leaseIds),
    };
  }

  /** Destroys many sessions. The answers are in the order of `sessions`. */
  async batchDestroy(
    sessions: readonly SessionId[],
    options: DestroyOptions = {},
  ): Promise<{ destroyed: boolean[]; places: Place[] }> {
    const answers = await this.inParts(sessions, async (part) => {
      const answer = await this.call(methods.BatchDestroySessions, {
        ...idLists(part),
        leaseId: leaseNumber(options.leaseId),
        withPlace: options.withPlace ?? false,
      });
      expectAnswers(part, answer.destroyed);
      return answer;
    });
    return {
      destroyed: answers.flatMap(({ destroyed }) => destroyed),
      places: lastPlaces(answers.flatMap(({ places }) => toPlaces(places))),
    };
  }

  /** Grants a lease that expires after `ttlMs` unless it is kept alive. {@link lease} also keeps it alive. */
  async grantLease(ttlMs: number, owner = ""): Promise<LeaseGrant> {
    return grantLease(this.transport, ttlMs, owner, this.timeoutMs);
  }

  /** Extends a lease to its full ttl from now, and returns that ttl in milliseconds. */
  async keepLeaseAlive(leaseId: bigint): Promise<number> {
    return keepLeaseAlive(this.transport, leaseId, this.timeoutMs);
  }

  /**
   * Ends a lease and destroys its sessions, now or after `lingerMs`. Returns how many were destroyed; 0n if it lingers.
   *
   * A lease that lingers accepts no sessions, and other gateways may take those it has.
   */
  async revokeLease(leaseId: bigint, lingerMs = 0): Promise<bigint> {
    return revokeLease(this.transport, leaseId, lingerMs, this.timeoutMs);
  }

  /** Lists the leases, ordered by id, with the number of sessions under each. */
  async *listLeases(options: ListLeasesOptions = {}): AsyncGenerator<LeaseStatus, void, undefined> {
    const { owner = "", pageSize = 0 } = options;
    const ids = sortedLeases(options.leaseIds ?? []);
    // Without ids there is one part, which lists all leases.
    for (let start = 0; start === 0 || start < ids.length; start += MAX_BATCH) {
      const leaseIds = ids.slice(start, start + MAX_BATCH);
      let pageToken = "";
      do {
        const page = await this.call(methods.ListLeases, { pageSize, pageToken, owner, leaseIds });
        for (const { lease, ttl, expiresIn, sessionCount, lingers } of page.leases) {
          const holder = toHolder(lease);
          const [ttlMs, expiresInMs] = [toMs(ttl), toMs(expiresIn)];
          if (holder === undefined || ttlMs === undefined || expiresInMs === undefined) {
            throw protocolError("a listed lease without an id or a duration");
          }
          yield { ...holder, ttlMs, expiresInMs, sessionCount, lingers };
        }
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
    }
  }

  /**
   * Grants a lease and keeps it alive in the background, on a connection of its own.
   *
   * `owner` is by convention the address at which the gateway can be reached.
   */
  async lease(ttlMs: number, owner = ""): Promise<Lease> {
    const { target, timeoutMs, logger } = this;
    return Lease.start({ target, timeoutMs, logger, ttlMs, owner });
  }

  /** Observes the registry. Iterate over the result. */
  watch(options: WatchOptions = {}): Watch {
    return new Watch(this.target, this.timeoutMs, options);
  }

  /**
   * Starts a gateway: grants a lease for `owner` and keeps the registry in agreement with the connections.
   *
   * `owner` is by convention the address at which the gateway can be reached.
   */
  async gateway(owner: string, options: GatewayOptions = {}): Promise<Gateway> {
    const lease = await this.lease(options.ttlMs ?? DEFAULT_TTL_MS, owner);
    const { target, timeoutMs, logger } = this;
    return new Gateway({ client: this, lease, target, timeoutMs, logger }, options);
  }

  /** Starts a local copy of the registry, or of the sessions that match the filters. */
  mirror(options: MirrorOptions = {}): Mirror {
    const { target, transport, timeoutMs, logger } = this;
    return new Mirror({ target, transport, timeoutMs, logger }, options);
  }

  /**
   * The connection of the calls, for other services of the same server such as `grpc.health.v1`. Calls that you make over
   * it do not carry the client's token. Read this again after a failure: a connection that cannot be opened is replaced.
   */
  get channel(): GrpcChannel {
    return this.transport.channel;
  }

  /**
   * Closes the connections for calls. Those in flight and later ones fail with CANCELLED and `CLOSED`. End watches,
   * mirrors, leases and gateways first.
   */
  close(): void {
    this.transport.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private call<Request, Response>(method: methods.Method<Request, Response>, request: Request): Promise<Response> {
    return this.transport.call(method, request, this.timeoutMs);
  }

  private async inParts<Answer>(
    sessions: readonly SessionId[],
    call: (part: SessionKey[]) => Promise<Answer>,
  ): Promise<Answer[]> {
    const keys = sessions.map((session) => SessionKey.of(session));
    const answers = [];
    for (let start = 0; start < keys.length; start += MAX_BATCH) {
      answers.push(await call(keys.slice(start, start + MAX_BATCH)));
    }
    return answers;
  }
}

function ids(session: SessionId): { authKeyId: bigint; sessionId: bigint } {
  const { authKeyId, sessionId } = SessionKey.of(session);
  return { authKeyId, sessionId };
}

function tlsCredentials({ tlsCa, tlsIdentity }: ClientOptions) {
  try {
    return credentials.createSsl(pem(tlsCa), pem(tlsIdentity?.key), pem(tlsIdentity?.cert));
  } catch (error) {
    throw invalid(`invalid TLS settings: ${String(error)}`);
  }
}

function pem(text: string | Uint8Array | undefined): Buffer | null {
  return text === undefined ? null : Buffer.from(text);
}

function invalid(message: string): SessiondError {
  return new SessiondError(Code.INVALID_ARGUMENT, message);
}

/** Returns each id once, in order. */
function sortedLeases(leaseIds: readonly bigint[]): bigint[] {
  return [...new Set(leaseIds.map(leaseNumber))].sort((a, b) => (a < b ? -1 : 1));
}

function optionalLease(leaseId: bigint | undefined): bigint | undefined {
  return leaseId === undefined ? undefined : leaseNumber(leaseId);
}

function toHolder(lease: ProtoLease | undefined): LeaseHolder | undefined {
  return lease && lease.leaseId !== 0n ? { leaseId: lease.leaseId, owner: lease.owner } : undefined;
}

function toPlace(place: Place | undefined): Place | undefined {
  return place && { partition: place.partition, position: place.position };
}

function expectAnswers(part: readonly SessionKey[], ...lists: readonly (readonly unknown[])[]): void {
  if (lists.some((list) => list.length !== part.length)) {
    throw protocolError("a batch response does not have one value for each session");
  }
}
