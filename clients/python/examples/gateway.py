"""A gateway with one connection. Destroy its session, and it is told to close it: `sessiond destroy 42`."""

import asyncio
import sys

from sessiond import Client, SessionKey


async def main(address: str) -> None:
    async with Client(address) as client, await client.gateway("gw-1:8443") as gateway:
        # A client has connected.
        with await gateway.connect(SessionKey(0, 42)) as connection:
            print("connected", flush=True)
            # Serve the client until it disconnects, or must be disconnected.
            print(await connection.closed)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:50051"))
