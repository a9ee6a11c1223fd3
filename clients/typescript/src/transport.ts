import {
  Client as GrpcClient,
  Metadata,
  type ChannelCredentials,
  type ClientReadableStream,
  type Interceptor,
} from "@grpc/grpc-js";

import { fromServiceError, protocolError } from "./errors";
import type { Method } from "./methods";
import type { TokenSource } from "./token";

const RETRIES = {
  name: [{ service: "sessiond.v1.SessionService" }, { service: "sessiond.v1.LeaseService" }],
  retryPolicy: {
    maxAttempts: 5,
    initialBackoff: "0.1s",
    maxBackoff: "1s",
    backoffMultiplier: 2,
    retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
  },
};

const CALLS = { loadBalancingConfig: [{ round_robin: {} }], methodConfig: [RETRIES] };

/** A stream or a lease needs one connection, to any replica. It retries by itself. */
const ONE_CONNECTION = { loadBalancingConfig: [{ pick_first: { shuffleAddressList: true } }] };

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

  /** Makes a call. It waits for a connection, and fails after `timeoutMs`. */
  call<Request, Response>(method: Method<Request, Response>, request: Request, timeoutMs: number): Promise<Response> {
    const { path, serialize, deserialize } = method;
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + timeoutMs };
      try {
        this.client.makeUnaryRequest(path, serialize, deserialize, request, this.metadata(true), options, (error, answer) => {
          if (error) reject(fromServiceError(error));
          else if (answer === undefined) reject(protocolError("no answer"));
          else resolve(answer);
        });
      } catch (error) {
        reject(fromServiceError(error));
      }
    });
  }

  /** Opens a stream. It fails at once if there is no connection. */
  stream<Request, Response>(method: Method<Request, Response>, request: Request): ClientReadableStream<Response> {
    const { path, serialize, deserialize } = method;
    return this.client.makeServerStreamRequest(path, serialize, deserialize, request, this.metadata(false));
  }

  close(): void {
    this.client.close();
  }

  private metadata(waitForReady: boolean): Metadata {
    const metadata = new Metadata({ waitForReady });
    const token = this.target.token();
    if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
    return metadata;
  }
}
