"""Mirrors the set of sessions in a sessiond and prints every change to it.

Generate the stubs next to this file, then run it:

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. sessiond/v1/session_service.proto
    python watch.py 127.0.0.1:50051
"""

import sys
import time

import grpc
from sessiond.v1 import session_service_pb2 as pb
from sessiond.v1.session_service_pb2_grpc import SessionServiceStub


def watch(sessions):
    held, cursor = set(), ""
    while True:
        # With the last cursor, the stream continues where it broke. The cursor is empty during a snapshot: start over
        # then.
        start = pb.SubscribeRequest(cursor=cursor) if cursor else pb.SubscribeRequest(snapshot=True)
        if not cursor:
            held.clear()
        try:
            for message in sessions.Subscribe(start):
                apply(message, held)
                cursor = message.cursor
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            print(f"disconnected, retrying: {error.details()}", flush=True)
            time.sleep(1)


def apply(message, held):
    match message.WhichOneof("body"):
        case "reset":
            held.clear()
        case "snapshot":
            held.update((s.auth_key_id, s.session_id) for s in message.snapshot.sessions)
        case "synced":
            print(f"{len(held)} sessions", flush=True)
        case "events":
            for event in message.events.events:
                session = event.auth_key_id, event.session_id
                if event.type == pb.SESSION_EVENT_TYPE_CREATED:
                    held.add(session)
                    print(f"created {event.session_id}", flush=True)
                else:
                    held.discard(session)
                    print(f"destroyed {event.session_id}", flush=True)


if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051") as channel:
        stub = SessionServiceStub(channel)
        stub.CreateSession(pb.CreateSessionRequest(session_id=42))
        watch(stub)
