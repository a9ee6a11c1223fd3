"""Starts agents and talks to them in JSON lines, as PROTOCOL.md describes."""

import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import sys

from servers import Program
from stubs import FOLDER, ROOT

HERE = pathlib.Path(__file__).resolve().parent
LINE = 1 << 26  # bytes: a dump of 60,000 sessions is one line
COMMANDS = {
    "python": [sys.executable, str(HERE / "agents/python.py")],
    "typescript": ["node", str(HERE / "agents/typescript.mjs")],
    "rust": [os.environ.get("SESSIOND_RUST_AGENT", str(ROOT / "target/debug/examples/client_agent"))],
    "plain": [sys.executable, str(HERE / "agents/plain.py")],
}


def check_build(client):
    """Ends the program if an agent would run an old build of its package."""
    if client == "typescript":
        package = ROOT / "clients/typescript"
        built, changed = package / "dist/index.mjs", max(path.stat().st_mtime for path in (package / "src").rglob("*.ts"))
        if not built.exists() or built.stat().st_mtime < changed:
            sys.exit(f"{built} is missing or older than its source: run `npm run build` in {package}")


class Refused(Exception):
    """An agent answered a command with an error."""

    def __init__(self, error):
        super().__init__(f"{error.get('reason')}: {error.get('message', '')}")
        self.reason, self.lease = error.get("reason"), error.get("lease")


class Gone(Exception):
    """The agent has ended before it answered."""


class Agent(Program):
    def __init__(self, client, name, on_event=lambda event: None, on_end=lambda agent: None):
        super().__init__()
        self.client, self.name, self.on_event, self.on_end = client, name, on_event, on_end
        self.ids, self.waiting = itertools.count(1), {}
        self.errors = []
        self.expected_end = False

    async def start(self):
        environment = os.environ | {"SESSIOND_STUBS": FOLDER, "PYTHONUNBUFFERED": "1"}
        self.process = await asyncio.create_subprocess_exec(
            *COMMANDS[self.client], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=LINE, env=environment,
        )
        self.tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._read_errors())]
        return self

    async def _read(self):
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            if "event" in message:
                self.on_event(message)
                continue
            future, on_ok = self.waiting.pop(message["id"])
            if "ok" in message and on_ok:
                on_ok(message["ok"])
            if future.done():
                continue
            if "ok" in message:
                future.set_result(message["ok"])
            else:
                future.set_exception(Refused(message["error"]))
        for future, _ in self.waiting.values():
            if not future.done():
                future.set_exception(Gone(self.name))
        self.waiting.clear()
        await self.process.wait()
        self.on_end(self)

    async def _read_errors(self):
        while line := await self.process.stderr.readline():
            self.errors.append(line.decode(errors="replace").rstrip())

    def send(self, do, on_ok=None, **fields):
        """Sends a command. Returns a future of its answer. `on_ok` is called before any later line is looked at."""
        id_ = next(self.ids)
        future = asyncio.get_running_loop().create_future()
        # Nobody may be interested in the answer.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not self.runs:
            future.set_exception(Gone(self.name))
            return future
        self.waiting[id_] = future, on_ok
        self.process.stdin.write(json.dumps({"id": id_, "do": do} | fields).encode() + b"\n")
        return future

    async def call(self, do, timeout=30, **fields):
        return await asyncio.wait_for(self.send(do, **fields), timeout)

    async def kill(self):
        self.expected_end = True
        await super().kill()
        for task in self.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def rss(self):
        """Returns the resident memory in bytes."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0
