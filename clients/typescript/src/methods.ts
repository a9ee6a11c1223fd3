import * as leases from "./generated/sessiond/v1/lease_service";
import * as sessions from "./generated/sessiond/v1/session_service";
import { decodeSubscribeResponse, type StreamMessage } from "./stream-message";

/** How to make a call: its path, and how its messages are encoded. */
export interface Method<Request, Response> {
  readonly path: string;
  readonly serialize: (request: Request) => Buffer;
  readonly deserialize: (bytes: Buffer) => Response;
}

interface Encodes<T> {
  encode(message: T): { finish(): Uint8Array };
}

interface Decodes<T> {
  decode(bytes: Uint8Array): T;
}

function method<Request, Response>(
  path: string,
  request: Encodes<Request>,
  response: Decodes<Response>,
): Method<Request, Response> {
  return {
    path: `/sessiond.v1.${path}`,
    serialize: (message) => {
      const bytes = request.encode(message).finish();
      return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    },
    deserialize: (bytes) => response.decode(bytes),
  };
}

const { HasSessionRequest, HasSessionResponse, LookupSessionRequest, LookupSessionResponse } = sessions;
const { CreateSessionRequest, CreateSessionResponse, DestroySessionRequest, DestroySessionResponse } = sessions;
const { BatchHasSessionsRequest, BatchHasSessionsResponse } = sessions;
const { BatchLookupSessionsRequest, BatchLookupSessionsResponse } = sessions;
const { BatchCreateSessionsRequest, BatchCreateSessionsResponse } = sessions;
const { BatchDestroySessionsRequest, BatchDestroySessionsResponse } = sessions;
const { GrantLeaseRequest, GrantLeaseResponse, KeepLeaseAliveRequest, KeepLeaseAliveResponse } = leases;
const { RevokeLeaseRequest, RevokeLeaseResponse, ListLeasesRequest, ListLeasesResponse } = leases;

export const HasSession = method("SessionService/HasSession", HasSessionRequest, HasSessionResponse);
export const LookupSession = method("SessionService/LookupSession", LookupSessionRequest, LookupSessionResponse);
export const CreateSession = method("SessionService/CreateSession", CreateSessionRequest, CreateSessionResponse);
export const DestroySession = method("SessionService/DestroySession", DestroySessionRequest, DestroySessionResponse);
export const BatchHasSessions = method(
  "SessionService/BatchHasSessions",
  BatchHasSessionsRequest,
  BatchHasSessionsResponse,
);
export const BatchLookupSessions = method(
  "SessionService/BatchLookupSessions",
  BatchLookupSessionsRequest,
  BatchLookupSessionsResponse,
);
export const BatchCreateSessions = method(
  "SessionService/BatchCreateSessions",
  BatchCreateSessionsRequest,
  BatchCreateSessionsResponse,
);
export const BatchDestroySessions = method(
  "SessionService/BatchDestroySessions",
  BatchDestroySessionsRequest,
  BatchDestroySessionsResponse,
);
export const Subscribe = method<sessions.SubscribeRequest, StreamMessage>(
  "SessionService/Subscribe",
  sessions.SubscribeRequest,
  { decode: decodeSubscribeResponse },
);
export const GrantLease = method("LeaseService/GrantLease", GrantLeaseRequest, GrantLeaseResponse);
export const KeepLeaseAlive = method("LeaseService/KeepLeaseAlive", KeepLeaseAliveRequest, KeepLeaseAliveResponse);
export const RevokeLease = method("LeaseService/RevokeLease", RevokeLeaseRequest, RevokeLeaseResponse);
export const ListLeases = method("LeaseService/ListLeases", ListLeasesRequest, ListLeasesResponse);
