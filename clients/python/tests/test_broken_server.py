"""Servers and proxies that end streams in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from sessiond import Client, Disconnected, Heartbeat, Place, SessiondError, Subscribed, WatchUpdate
from sessiond._proto import session_service_pb2 as pb

Context = grpc.aio.ServicerContext[pb.SubscribeRequest, pb.SubscribeResponse]


class Broken:
    """Ends each stream with the next of its codes. OK ends it without an error, None does not end it."""

    def __init__(self, *codes: grpc.StatusCode | None) -> None:
        self.codes = list(codes)
        self.cursors: list[str] = []
        self._server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(
            self._subscribe,
            request_deserializer=pb.SubscribeRequest.FromString,
            response_serializer=pb.SubscribeResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("sessiond.v1.SessionService", {"Subscribe": handler})
        self._server.add_generic_rpc_handlers((service,))
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> Broken:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def _subscribe(self, request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        self.cursors.append(request.cursor)
        code = self.codes.pop(0) if self.codes else None
        yield pb.SubscribeResponse(subscribed=pb.Subscribed(registry_id="r"), cursor=f"s{len(self.cursors)}")
        yield pb.SubscribeResponse(heartbeat=pb.Heartbeat(), cursor=f"h{len(self.cursors)}")
        if code is None:
            await asyncio.sleep(60)
        elif code is not grpc.StatusCode.OK:
            await context.abort(code, "broken")


async def updates_of(client: Client, until: int) -> list[WatchUpdate]:
    seen: list[WatchUpdate] = []
    async with client.watch() as watch:
        while sum(isinstance(update, Heartbeat) for update in seen) < until:
            seen.append(await asyncio.wait_for(anext(watch), 15))
    return seen


async def test_a_watch_never_gives_up_on_errors_that_pass() -> None:
    codes = [
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.OK,
    ]
    async with Broken(*codes) as server, Client(server.address) as client:
        seen = await updates_of(client, len(codes) + 1)
        errors = [update.error.code for update in seen if isinstance(update, Disconnected)]
        # A stream that ends without an error is as good as one that is unavailable.
        assert errors == [*codes[:-1], grpc.StatusCode.UNAVAILABLE]
        assert server.cursors == ["", *(f"h{number}" for number in range(1, len(codes) + 1))]
        assert sum(isinstance(update, Subscribed) for update in seen) == len(codes) + 1


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_watch_raises_errors_that_stay(code: grpc.StatusCode) -> None:
    async with Broken(code) as server, Client(server.address) as client, client.watch() as watch:
        assert isinstance(await anext(watch), Subscribed) and isinstance(await anext(watch), Heartbeat)
        with pytest.raises(SessiondError) as caught:
            await anext(watch)
        assert caught.value.code is code
        # The caller may go on all the same.
        assert isinstance(await asyncio.wait_for(anext(watch), 15), Subscribed)
        assert server.cursors == ["", "h1"]


async def test_a_wait_fails_when_the_registry_is_rolled_back() -> None:
    rolled_back = asyncio.Event()

    class RolledBack(Broken):
        async def _subscribe(
            self, request: pb.SubscribeRequest, context: Context
        ) -> AsyncIterator[pb.SubscribeResponse]:
            yield pb.SubscribeResponse(subscribed=pb.Subscribed(registry_id="r"), cursor=request.cursor)
            if not rolled_back.is_set():
                yield pb.SubscribeResponse(synced=pb.Synced(places=[pb.Place(partition=0, position=7)]), cursor="c")
                await rolled_back.wait()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            yield pb.SubscribeResponse(reset=pb.Reset(reason=pb.RESET_REASON_STORAGE_RESTARTED))
            yield pb.SubscribeResponse(synced=pb.Synced(places=[pb.Place(partition=0, position=3)]), cursor="d")
            await asyncio.sleep(60)

    async with RolledBack() as server, Client(server.address, timeout=2) as client, await client.mirror() as mirror:
        await mirror.wait_until(Place(0, 7))
        waiting = asyncio.create_task(mirror.wait_until(Place(0, 8)))
        await asyncio.sleep(0)
        rolled_back.set()
        with pytest.raises(SessiondError) as caught:
            await waiting
        assert caught.value.reason == "REGISTRY_LOST"
        # The same position may be another change now.
        await mirror.wait_until(Place(0, 3))
        with pytest.raises(SessiondError) as caught:
            await mirror.wait_until(Place(0, 7))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_watch_refuses_an_event_of_an_unknown_type() -> None:
    class Newer(Broken):
        async def _subscribe(
            self, request: pb.SubscribeRequest, context: Context
        ) -> AsyncIterator[pb.SubscribeResponse]:
            yield pb.SubscribeResponse(subscribed=pb.Subscribed(registry_id="r"), cursor="s")
            event = pb.SessionEvent(session_id=1)
            event.type = 9  # type: ignore[assignment]
            yield pb.SubscribeResponse(events=pb.SessionEvents(events=[event]), cursor="e")
            await asyncio.sleep(60)

    async with Newer() as server, Client(server.address) as client, client.watch() as watch:
        assert isinstance(await anext(watch), Subscribed)
        with pytest.raises(SessiondError, match="unknown type") as caught:
            await anext(watch)
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED and watch.cursor == "s"
