"""A client of mtpylon that has an auth key already, and a server that knows it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pyaes
from mtpylon.crypto import AuthKey, generate_key_iv, get_msg_key
from mtpylon.messages.encrypted_message import dump_message, pad_bytes
from mtpylon.messages.types import EncryptedMessage
from mtpylon.serialization import CallableFunc
from mtpylon.serialization.int128 import dump as dump_int128
from mtpylon.types import long
from tgcrypto import ige256_encrypt

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from mtpylon_server import SCHEMA, echo  # noqa: E402

# Its id is above 2^63, and therefore not a signed number.
AUTH_KEY = next(key for key in (AuthKey((1 << 2047) + number) for number in range(99)) if key.id >> 63)

_SERVER = """
import sys
from aiohttp import web
from mtpylon.constants import AUTH_KEY_MANAGER_RESOURCE_NAME as KEYS
import mtpylon_server as example
app = example.make_app(sys.argv[1], sys.argv[2], float(sys.argv[3]), [])
async def know_the_key(app):
    await app[KEYS].set_key(int(sys.argv[4]))
app.on_startup.append(know_the_key)
web.run_app(app, host="127.0.0.1", port=0, print=lambda text: print(text, flush=True))
"""


class MtpylonServer:
    """The example server in a process of its own, which knows `AUTH_KEY`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, registry: str, owner: str, ttl: float = 30) -> MtpylonServer:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _SERVER,
            registry,
            owner,
            str(ttl),
            str(AUTH_KEY.value),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        )
        assert process.stdout is not None
        while b"Running on" not in (line := await asyncio.wait_for(process.stdout.readline(), 30)):
            assert line, "the example did not start"
        return cls(process, int(line.decode().split(":")[-1].split()[0].rstrip("/ =")))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.startswith((b"created", b"destroyed")):
                self.lines.append(line.decode().strip())

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


class MtprotoClient:
    """A WebSocket with MTProto's obfuscation and encryption."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self.socket = socket
        header = bytearray(os.urandom(64))
        counter = pyaes.Counter(int.from_bytes(header[40:56], "big"))
        self._cipher = pyaes.AESModeOfOperationCTR(bytes(header[8:40]), counter=counter)
        plain = bytes(header[:56]) + b"\xee" * 4 + bytes(header[60:])
        header[56:] = self._cipher.encrypt(plain)[56:]
        self._header = bytes(header)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator[MtprotoClient]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{port}/ws") as socket,
        ):
            client = cls(socket)
            await socket.send_bytes(client._header)
            yield client

    async def send(self, session_id: int, content: str = "hello") -> None:
        """Calls `echo` in a session. The answer says that the salt is wrong, which does not matter here."""
        data: Any = CallableFunc(func=echo, params={"content": content})
        message = EncryptedMessage(
            salt=long(1), session_id=long(session_id), message_id=long(0x51E57AC42770964A), seq_no=1, message_data=data
        )
        dumped = await dump_message(SCHEMA, message)
        dumped += pad_bytes(dumped)  # type: ignore[no-untyped-call]
        key = get_msg_key(AUTH_KEY, dumped)
        pair = generate_key_iv(AUTH_KEY, key, key_type="client")
        encrypted = AUTH_KEY.id.to_bytes(8, "big") + dump_int128(key) + ige256_encrypt(dumped, pair.key, pair.iv)
        wrapped = len(encrypted).to_bytes(4, "little") + encrypted
        await self.socket.send_bytes(self._cipher.encrypt(wrapped))

    async def answer(self) -> bytes:
        """Returns the next message from the server, as it is."""
        return await self.socket.receive_bytes(timeout=15)
