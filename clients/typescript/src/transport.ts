import {
  Client as GrpcClient,
  connectivityState,
  Metadata,
  status as Code,
  type ChannelCredentials,
  type ClientOptions as GrpcOptions,
  type ClientReadableStream,
  type ClientUnaryCall,
  type Interceptor,
} from "@grpc/grpc-js";

import { closedError, fromServiceError, protocolError, SessiondError } from "./errors";
import type { Method } from "./methods";
import type { TokenSource } from "./token";

const RETRIES = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "1s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
};
const SESSIONS = "sessiond.v1.SessionService";
const LEASES = "sessiond.v1.LeaseService";

const CALLS = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [{ name: [{ service: SESSIONS }, { service: LEASES }], retryPolicy: RETRIES }],
};

/**
 * A stream or a lease needs one connection, to any replica. Streams and keep-alives are retried by their callers, on a
 * new connection if need be.
 */
const ONE_CONNECTION = {
  loadBalancingConfig: [{ pick_first: { shuffleAddressList: true } }],
  methodConfig: [
    {
      name: [
        { service: LEASES, method: "GrantLease" },
        { service: LEASES, method: "RevokeLease" },
      ],
      retryPolicy: RETRIES,
    },
  ],
};

/** A lease must notice a dead connection well before it expires, and reconnect soon after an outage. */
const OPTIONS = {
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5000,
  "grpc.keepalive_permit_without_calls": 1,
  // A call can be retried as long as its request is below this. The largest batch takes 1 MiB.
  "grpc.per_rpc_retry_buffer_size": 4 << 20,
  // Connections are shared between channels otherwise, and a new channel would not leave a dead one.
  "grpc.use_local_subchannel_pool": 1,
};

/**
 * How long an attempt to connect may take at most. grpc-js itself waits for as long as the kernel does, which may be
 * forever. The time doubles with each attempt, because a name server that is down delays them all.
 */
const LONGEST_CONNECT_TIMEOUT_MS = 60_000;

/** A channel of grpc-js. */
export type GrpcChannel = NonNullable<GrpcOptions["channelOverride"]>;

/** What is needed to connect. */
export interface Target {
  readonly target: string;
  readonly credentials: ChannelCredentials;
  readonly token: TokenSource;
  readonly interceptors: readonly Interceptor[];
  /** How long the first attempt to connect may take. */
  readonly connectTimeoutMs: number;
}

/** A stream, and how to convert its errors. */
export interface SentStream<Response> {
  readonly call: ClientReadableStream<Response>;
  readonly toError: (error: unknown) => SessiondError;
}

/** Connections to a server, opened on first use. */
export class Transport {
  private client: GrpcClient;
  private connectTimeoutMs: number;
  private readonly calls = new Set<ClientUnaryCall>();
  private isClosed = false;

  private constructor(
    private readonly target: Target,
    private readonly config: object,
  ) {
    this.connectTimeoutMs = target.connectTimeoutMs;
    this.client = this.open();
  }

  /** Balances calls over the replicas, and retries them. */
  static forCalls(target: Target): Transport {
    return new Transport(target, CALLS);
  }

  /** Has one connection. */
  static dedicated(target: Target): Transport {
    return new Transport(target, ONE_CONNECTION);
  }

  /** The connection. It is replaced if it cannot be opened in time. */
  get channel(): GrpcChannel {
    if (this.isClosed) throw closedError("client");
    return this.client.getChannel();
  }

  /**
   * Makes a call. It waits for a connection, and fails after `timeoutMs`. If its token is refused and has been replaced
   * meanwhile, it is made once more.
   */
  async call<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    timeoutMs: number,
  ): Promise<Response> {
    const deadline = Date.now() + timeoutMs;
    for (let isFirst = true; ; isFirst = false) {
      if (this.isClosed) throw closedError("client");
      const { client } = this;
      try {
        return await this.callOnce(method, request, deadline);
      } catch (error) {
        if (this.closed()) throw closedError("client");
        if (!(error instanceof SessiondError)) throw error;
        const wasReplaced = error.code === Code.UNAVAILABLE && this.client !== client;
        if (!wasReplaced && !(isFirst && error.hasNewToken)) throw error;
      }
    }
  }

  /** Opens a stream. It fails at once if there is no connection. */
  stream<Request, Response>(method: Method<Request, Response>, request: Request): SentStream<Response> {
    const { path, serialize, deserialize } = method;
    const token = this.target.token();
    const call = this.client.makeServerStreamRequest(path, serialize, deserialize, request, metadataOf(token, false));
    return { call, toError: this.errorsOf(token) };
  }

  /** Closes the connection. Calls in flight fail. */
  close(): void {
    this.isClosed = true;
    for (const call of this.calls) call.cancel();
    this.client.close();
  }

  private closed(): boolean {
    return this.isClosed;
  }

  private open(): GrpcClient {
    const client = new GrpcClient(this.target.target, this.target.credentials, {
      ...OPTIONS,
      "grpc.service_config": JSON.stringify(this.config),
      interceptors: [...this.target.interceptors],
    });
    this.guard(client);
    return client;
  }

  /** Replaces the client if an attempt to connect takes too long. Its calls are made again. */
  private guard(client: GrpcClient): void {
    const channel = client.getChannel();
    const state = channel.getConnectivityState(false);
    if (state === connectivityState.SHUTDOWN) return;
    if (state === connectivityState.READY) this.connectTimeoutMs = this.target.connectTimeoutMs;
    const deadline = state === connectivityState.CONNECTING ? Date.now() + this.connectTimeoutMs : Infinity;
    channel.watchConnectivityState(state, deadline, (hangs) => {
      if (!hangs) {
        this.guard(client);
        return;
      }
      const longest = Math.max(LONGEST_CONNECT_TIMEOUT_MS, this.target.connectTimeoutMs);
      this.connectTimeoutMs = Math.min(this.connectTimeoutMs * 2, longest);
      this.client = this.open();
      client.close();
    });
  }

  private callOnce<Request, Response>(
    { path, serialize, deserialize }: Method<Request, Response>,
    request: Request,
    deadline: number,
  ): Promise<Response> {
    const token = this.target.token();
    const toError = this.errorsOf(token);
    return new Promise((resolve, reject) => {
      const metadata = metadataOf(token, true);
      try {
        const options = { deadline };
        const call = this.client.makeUnaryRequest(path, serialize, deserialize, request, metadata, options, (error, answer) => {
          this.calls.delete(call);
          if (error) reject(toError(error));
          else if (answer === undefined) reject(protocolError("no answer"));
          else resolve(answer);
        });
        this.calls.add(call);
      } catch (error) {
        reject(toError(error));
      }
    });
  }

  /** Returns how to convert the errors of a call that was sent with `token`. */
  private errorsOf(token: string | undefined): (error: unknown) => SessiondError {
    return (error) => fromServiceError(error, () => this.target.token() !== token);
  }
}

function metadataOf(token: string | undefined, waitForReady: boolean): Metadata {
  const metadata = new Metadata({ waitForReady });
  if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}
