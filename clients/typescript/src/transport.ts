import {
  Client as GrpcClient,
  Metadata,
  type ChannelCredentials,
  type ClientReadableStream,
  type Interceptor,
} from "@grpc/grpc-js";

import { fromServiceError, protocolError, SessiondError } from "./errors";
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
};

/** What is needed to connect. */
export interface Target {
  readonly target: string;
  readonly credentials: ChannelCredentials;
  readonly token: TokenSource;
  readonly interceptors: readonly Interceptor[];
}

/** A stream, and how to convert its errors. */
export interface SentStream<Response> {
  readonly call: ClientReadableStream<Response>;
  readonly toError: (error: unknown) => SessiondError;
}

/** Connections to a server, opened on first use. */
export class Transport {
  private readonly client: GrpcClient;

  private constructor(
    private readonly target: Target,
    config: object,
    options: Record<string, number>,
  ) {
    this.client = new GrpcClient(target.target, target.credentials, {
      ...OPTIONS,
      ...options,
      "grpc.service_config": JSON.stringify(config),
      interceptors: [...target.interceptors],
    });
  }

  /** Balances calls over the replicas, and retries them. */
  static forCalls(target: Target): Transport {
    return new Transport(target, CALLS, {});
  }

  /** Has a connection of its own. */
  static dedicated(target: Target): Transport {
    return new Transport(target, ONE_CONNECTION, { "grpc.use_local_subchannel_pool": 1 });
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
    try {
      return await this.callOnce(method, request, deadline);
    } catch (error) {
      if (!(error instanceof SessiondError && error.hasNewToken)) throw error;
      return this.callOnce(method, request, deadline);
    }
  }

  /** Opens a stream. It fails at once if there is no connection. */
  stream<Request, Response>(method: Method<Request, Response>, request: Request): SentStream<Response> {
    const { path, serialize, deserialize } = method;
    const token = this.target.token();
    const call = this.client.makeServerStreamRequest(path, serialize, deserialize, request, metadataOf(token, false));
    return { call, toError: this.errorsOf(token) };
  }

  close(): void {
    this.client.close();
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
        this.client.makeUnaryRequest(path, serialize, deserialize, request, metadata, { deadline }, (error, answer) => {
          if (error) reject(toError(error));
          else if (answer === undefined) reject(protocolError("no answer"));
          else resolve(answer);
        });
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
