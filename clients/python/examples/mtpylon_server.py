"""An echo server with mtpylon whose sessions are in sessiond.

    pip install 'sessiond[mtpylon]'
    python mtpylon_server.py --registry http://127.0.0.1:50051 --owner gw-1:8081 --port 8081

Start it several times with different owners and ports. A client that connects to another one moves its session there.
Kill one, and its sessions end when its lease expires.
"""

# No `from __future__ import annotations` here: mtpylon reads the types of the schema.
import argparse
import logging
from dataclasses import dataclass

import rsa
from aiohttp import web
from mtpylon import Schema
from mtpylon.configuration import configure_app
from mtpylon.crypto import KeyPair
from mtpylon.sessions import SessionEvent
from mtpylon.sessions.session_oberver_protocol import SessionObserverProtocol

from sessiond.contrib.mtpylon import SessiondStorage, setup


@dataclass
class Reply:
    content: str

    class Meta:
        name = "reply"
        order = ("content",)


async def echo(request: web.Request, content: str) -> Reply:
    return Reply(content=content)


SCHEMA = Schema(constructors=[Reply], functions=[echo])


class PrintSessions(SessionObserverProtocol):
    """Prints the sessions of the whole fleet as they come and go."""

    async def update(self, event: SessionEvent) -> None:
        print(f"{event.type} session {event.session_id} of auth key {event.auth_key.id:#x}", flush=True)


def make_app(registry: str, owner: str, ttl: float, rsa_keys: list[KeyPair]) -> web.Application:
    app = web.Application()
    configure_app(app, SCHEMA, {"rsa_manager": {"params": {"rsa_keys": rsa_keys}}, "pub_keys_path": "/pub-keys"})
    subject = setup(app, SessiondStorage(registry, owner, ttl=ttl))
    subject.subscribe(PrintSessions())
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--registry", default="http://127.0.0.1:50051")
    parser.add_argument("--owner", default="127.0.0.1:8081", help="the address at which this gateway can be reached")
    parser.add_argument("--ttl", type=float, default=30, help="how many seconds the sessions outlive a crash")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    public, private = rsa.newkeys(2048)
    app = make_app(arguments.registry, arguments.owner, arguments.ttl, [KeyPair(public=public, private=private)])
    web.run_app(app, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
