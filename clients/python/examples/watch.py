"""Keeps the set of sessions, and prints every change to it."""

import asyncio
import sys

from sessiond import Client


async def main(address: str) -> None:
    async with Client(address) as client, await client.mirror() as mirror:
        changes = mirror.changes()
        await mirror.synced()
        print(f"{len(mirror)} sessions", flush=True)
        async for change in changes:
            print(change, flush=True)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:50051"))
