from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
import trustme

from sessiond import (
    Client,
    Disconnected,
    EventType,
    SessiondError,
    SessionElsewhere,
    SessionKey,
    Subscribed,
    Watch,
    _channel,
    errors,
)
from sessiond._proto import error_reason_pb2
from sessiond._proto import session_service_pb2 as pb
from sessiond._reasons import IS_RETRYABLE

from .server import BINARY, Proxy, Server

Start = Callable[..., Awaitable[Server]]


def test_unsigned_ids_become_signed() -> None:
    assert SessionKey(0xFFFF_FFFF_FFFF_FFFF, 1 << 63) == SessionKey(-1, -(1 << 63))
    for wrong in (1 << 64, -(1 << 63) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            SessionKey(0, wrong)


def test_every_reason_says_whether_to_retry() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert names - {"UNSPECIFIED"} == IS_RETRYABLE.keys()
    assert IS_RETRYABLE["STORAGE_UNAVAILABLE"] and not IS_RETRYABLE["LEASE_GONE"]


def test_wrong_addresses_are_refused() -> None:
    for address in ("127.0.0.1:50051", "ftp://host", "http://", "http://host:1/path", "unix:", "unix://"):
        with pytest.raises(ValueError, match="is not a server address"):
            Client(address)
    with pytest.raises(ValueError, match="https"):
        Client("http://host", tls_ca=b"")


def test_an_address_without_a_port_has_the_port_of_its_scheme() -> None:
    for address, name in {
        "http://host": "dns:///host:80",
        "https://host": "dns:///host:443",
        "http://[::1]": "dns:///[::1]:80",
        "https://[::1]:50051": "dns:///[::1]:50051",
    }.items():
        assert _channel.Target(address)._name()[0] == name


def test_a_malformed_token_is_refused() -> None:
    with pytest.raises(ValueError, match="sessiond token new"):
        Client("http://host", token="token\n")


def test_a_token_file_without_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the token"):
        Client("http://host", token_file=tmp_path / "missing")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="sessiond token new"):
        Client("http://host", token_file=tmp_path / "empty")


def test_errors_of_the_client_have_a_code_and_perhaps_a_reason() -> None:
    # The clients of other languages have the same table in their tests.
    code = grpc.StatusCode
    for error, expected, reason in (
        (SessionElsewhere(7), code.FAILED_PRECONDITION, "SESSION_ELSEWHERE"),
        (errors.registry_lost(), code.FAILED_PRECONDITION, "REGISTRY_LOST"),
        (errors.gateway_stopped(), code.FAILED_PRECONDITION, "GATEWAY_STOPPED"),
        (errors.closed_error("client"), code.CANCELLED, "CLOSED"),
        (errors.protocol_error(""), code.UNIMPLEMENTED, None),
    ):
        assert (error.code, error.reason) == (expected, reason)
        assert not error.is_retryable and not error.is_lease_gone


async def test_single_calls(client: Client) -> None:
    session = SessionKey(7, -1)
    lease = (await client.grant_lease(30, "gw-1:8443")).lease_id
    other = (await client.grant_lease(30, "gw-2:8443")).lease_id
    assert not await client.has(session)
    assert await client.lookup(session) == (False, None)
    created = await client.create(session, lease=lease, with_place=True)
    assert created and created.held_by is None and created.place is not None
    assert await client.has(session)
    assert not await client.has(SessionKey(0, -1))
    assert await client.lookup(session) == (True, (lease, "gw-1:8443"))
    stays = await client.create(session, lease=other, only_from=0)
    assert not stays and stays.held_by == (lease, "gw-1:8443")
    moved = await client.create(session, lease=other, only_from=lease)
    assert not moved and moved.held_by is None
    taken = await client.take(session, lease, only_from=other)
    assert not taken and taken.held_by is None
    assert (await client.take(session, other)).held_by == (lease, "gw-1:8443")
    assert not await client.take(session, other, only_from=lease)
    assert not await client.destroy(session, lease=lease)
    destroyed = await client.destroy(session, lease=other, with_place=True)
    assert destroyed and destroyed.place is not None
    assert not await client.has(session)


async def test_leases(client: Client) -> None:
    granted = await client.grant_lease(12.5, "gw-1:8443")
    assert granted.ttl == 12.5
    assert await client.keep_lease_alive(granted.lease_id) == 12.5
    await client.create(SessionKey(0, 1), lease=granted.lease_id)
    others = [await client.grant_lease(30, "gw-2:8443") for _ in range(5)]
    assert [lease.lease_id async for lease in client.list_leases(owner="gw-2:8443", page_size=2)] == sorted(
        other.lease_id for other in others
    )
    (status,) = [lease async for lease in client.list_leases(lease_ids=[granted.lease_id])]
    assert (status.owner, status.ttl, status.session_count, status.lingers) == ("gw-1:8443", 12.5, 1, False)
    assert await client.revoke_lease(granted.lease_id, linger=30) == 0
    with pytest.raises(SessiondError) as caught:
        await client.keep_lease_alive(granted.lease_id)
    assert caught.value.reason == "LEASE_LINGERS" and caught.value.is_lease_gone
    assert await client.revoke_lease(granted.lease_id) == 1
    with pytest.raises(SessiondError) as caught:
        await client.keep_lease_alive(granted.lease_id)
    assert caught.value.reason == "LEASE_GONE" and caught.value.is_lease_gone and not caught.value.is_retryable


async def test_batches_of_any_size(client: Client) -> None:
    sessions = [SessionKey(0, number) for number in range(70_000)]
    lease = (await client.grant_lease(30, "gw-1:8443")).lease_id
    created = await client.batch_take(sessions, lease, with_place=True)
    assert all(created.created) and created.lease_ids == [lease] * len(sessions) and created.places
    assert await client.batch_has([*sessions, SessionKey(1, 0)]) == [True] * len(sessions) + [False]
    assert await client.batch_lookup([sessions[0], SessionKey(1, 0)]) == [lease, None]
    destroyed = await client.batch_destroy(sessions, lease=lease)
    assert all(destroyed.destroyed) and len(destroyed.destroyed) == len(sessions)
    assert await client.batch_has([]) == []


async def test_leases_of_any_number_are_listed(client: Client) -> None:
    granted = sorted([(await client.grant_lease(30, "gw-1")).lease_id for _ in range(3)])
    unknown = range(1 << 60, (1 << 60) + 70_000)
    listed = client.list_leases(lease_ids=[*unknown, *reversed(granted)], page_size=2)
    assert [lease.lease_id async for lease in listed] == granted


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot tell a cancelled call from a cancelled task")
async def test_closing_the_client_fails_its_calls(client: Client, proxy: Proxy) -> None:
    async with Client(proxy.address) as closing:
        assert not await closing.has(SessionKey(0, 1))
        proxy.stall()
        call = asyncio.create_task(closing.has(SessionKey(0, 1)))
        cancelled = asyncio.create_task(closing.has(SessionKey(0, 1)))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await closing.close()
    with pytest.raises(SessiondError) as caught:
        await call
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.reason == "CLOSED" and not caught.value.is_retryable
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_a_closed_client_makes_no_calls(server: Server) -> None:
    client = Client(server.address)
    assert not await client.has(SessionKey(0, 1))
    await client.close()
    with pytest.raises(SessiondError) as caught:
        await client.has(SessionKey(0, 1))
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.reason == "CLOSED" and not caught.value.is_retryable


async def test_other_services_can_be_called_over_the_channel(client: Client) -> None:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert await check(b"") == b"\x08\x01"  # SERVING


async def test_errors_are_typed(client: Client) -> None:
    with pytest.raises(SessiondError) as caught:
        await client.create(SessionKey(0, 1), lease=99)
    error = caught.value
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "LEASE_GONE" and error.is_lease_gone and not error.is_retryable
    with pytest.raises(SessiondError, match="lease_id") as caught:
        await client.create(SessionKey(0, 1), only_from=0)
    assert caught.value.reason == "LEASE_ID_MISSING"


async def test_a_call_survives_the_restart_of_the_server(server: Server, client: Client) -> None:
    assert not await client.has(SessionKey(0, 1))
    await server.kill()
    call = asyncio.create_task(client.create(SessionKey(0, 1)))
    await server.start()
    assert await call


async def test_a_call_fails_after_the_timeout(proxy: Proxy) -> None:
    async with Client(proxy.address, timeout=0.5) as client:
        assert not await client.has(SessionKey(0, 1))
        proxy.stall()
        with pytest.raises(SessiondError) as caught:
            await client.has(SessionKey(0, 1))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED and caught.value.is_retryable


async def test_a_connection_that_died_silently_is_replaced(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [option for option in _channel._OPTIONS if option[0] != "grpc.keepalive_time_ms"]
    monkeypatch.setattr(_channel, "_OPTIONS", [*options, ("grpc.keepalive_time_ms", 1000)])
    async with Client(proxy.address, timeout=15) as client:
        assert not await client.has(SessionKey(0, 1))
        proxy.die()
        # This call goes to the dead connection, and is retried on a new one.
        assert not await client.has(SessionKey(0, 1))


async def test_rate_limits_carry_a_delay(started: Start) -> None:
    server = await started("--rate-limit", "1", "--rate-burst", "1")
    async with Client(server.address, timeout=0.3) as client:
        with pytest.raises(SessiondError) as caught:
            for _ in range(3):
                await client.has(SessionKey(0, 1))
        assert caught.value.is_retryable


async def test_tls_and_client_certificates(started: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, identity = authority.issue_cert("localhost"), authority.issue_cert("gw-1")
    (tmp_path / "cert").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    flags = [
        f"--{flag}={tmp_path / name}"
        for flag, name in (("tls-cert", "cert"), ("tls-key", "key"), ("tls-client-ca", "ca"))
    ]
    server = await started(*flags, scheme="https")
    address = f"https://localhost:{server.port}"
    pair = (b"".join(blob.bytes() for blob in identity.cert_chain_pems), identity.private_key_pem.bytes())
    async with Client(address, tls_ca=authority.cert_pem.bytes(), tls_identity=pair) as client:
        assert await client.create(SessionKey(0, 1))
        async with client.watch(snapshot=True) as watch:
            kinds = [type(await anext(watch)).__name__ for _ in range(3)]
        assert kinds == ["Subscribed", "Snapshot", "Synced"]
    async with Client(address, tls_ca=authority.cert_pem.bytes(), timeout=1) as stranger:
        with pytest.raises(SessiondError):
            await stranger.has(SessionKey(0, 1))


async def new_token(access: Path, name: str) -> str:
    process = await asyncio.create_subprocess_exec(
        BINARY,
        "token",
        "new",
        "--name",
        name,
        "--scopes",
        "read,write,observe",
        "--out",
        str(access.parent / name),
        stdout=asyncio.subprocess.PIPE,
    )
    entry = (await process.communicate())[0].decode()
    access.write_text(entry)
    return (access.parent / name).read_text()


async def test_a_rotated_token_is_used_by_the_next_call(started: Start, tmp_path: Path) -> None:
    access, file = tmp_path / "access", tmp_path / "token"
    file.write_text(await new_token(access, "first"))
    server = await started("--access-file", str(access))
    async with Client(server.address, token_file=file) as client, Client(server.address, token="wrong") as stranger:
        assert await client.create(SessionKey(0, 1))
        with pytest.raises(SessiondError) as caught:
            await stranger.has(SessionKey(0, 1))
        assert caught.value.reason == "TOKEN_UNKNOWN" and not caught.value.is_retryable
        watch = client.watch(types=[EventType.CREATED], heartbeat=0.1)
        await anext(watch)
        second = await new_token(access, "second")
        deadline = asyncio.get_running_loop().time() + 10
        with pytest.raises(SessiondError):
            while asyncio.get_running_loop().time() < deadline:
                await client.has(SessionKey(0, 1))
                await asyncio.sleep(0.05)
        file.write_text(second)
        assert await client.has(SessionKey(0, 1))
        await watch.close()


async def test_nothing_fails_when_a_token_is_replaced_before_the_old_one_ends(started: Start, tmp_path: Path) -> None:
    access, file = tmp_path / "access", tmp_path / "token"
    file.write_text(await new_token(access, "first"))
    server = await started("--access-file", str(access))
    async with Client(server.address, token_file=file) as client, client.watch(heartbeat=0.1) as watch:
        await anext(watch)
        mirror = await client.mirror(heartbeat=0.1)
        await mirror.synced()
        gateway = await client.gateway("gw-1", ttl=4)
        connection = await gateway.connect(SessionKey(0, 1))
        lease = gateway.lease_id
        for name in ("second", "third"):
            old = access.read_text()
            token = await new_token(access, name)
            new = access.read_text()
            access.write_text(old + new)
            async with Client(server.address, token=token) as other:
                await asyncio.wait_for(until_accepted(other), 10)
            file.write_text(token)
            access.write_text(new)
            # The server ends the stream of the old token, and the watch goes on at once.
            lost = await asyncio.wait_for(next_of(watch, Disconnected), 10)
            assert lost.error.reason == "TOKEN_UNKNOWN" and lost.error.is_retryable and lost.retry_in == 0
            await asyncio.wait_for(next_of(watch, Subscribed), 10)
            assert await client.has(SessionKey(0, 1))
            (await gateway.connect(SessionKey(0, 2))).close()
        created = await client.create(SessionKey(0, 3), with_place=True)
        assert created.place is not None
        await mirror.wait_until(created.place)
        assert not connection.closed.done() and gateway.lease_id == lease
        await mirror.close()
        await gateway.stop(linger=0)


Update = TypeVar("Update")


async def next_of(watch: Watch, kind: type[Update]) -> Update:
    while not isinstance(update := await anext(watch), kind):
        pass
    return update


async def until_accepted(client: Client) -> None:
    """Waits until the server has read the access file."""
    while True:
        try:
            await client.has(SessionKey(0, 1))
            return
        except SessiondError as error:
            assert error.reason == "TOKEN_UNKNOWN"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("replacement", ["new", "wrong", "same"])
async def test_a_call_is_retried_once_with_the_token_that_the_file_holds_now(tmp_path: Path, replacement: str) -> None:
    file, tokens = tmp_path / "token", list[str]()
    file.write_text("old")

    async def has(request: pb.HasSessionRequest, context: Any) -> pb.HasSessionResponse:
        tokens.append(str(dict(context.invocation_metadata())["authorization"]))
        if tokens[-1] != "Bearer new":
            if replacement != "same":
                file.write_text(replacement)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        return pb.HasSessionResponse(exists=True)

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        has,
        request_deserializer=pb.HasSessionRequest.FromString,
        response_serializer=pb.HasSessionResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("sessiond.v1.SessionService", {"HasSession": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"http://127.0.0.1:{port}", token_file=file) as client:
            if replacement == "new":
                assert await client.has(SessionKey(0, 1))
            else:
                with pytest.raises(SessiondError) as caught:
                    await client.has(SessionKey(0, 1))
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED and not caught.value.is_retryable
    finally:
        await server.stop(None)
    assert tokens == ["Bearer old"] + ([] if replacement == "same" else [f"Bearer {replacement}"])


def test_a_token_file_that_is_being_written_keeps_its_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old\n")
    file = _channel.TokenFile(tmp_path / "token")
    assert file.token() == "old"
    for partial in ("", "one\ntwo"):
        (tmp_path / "token").write_text(partial)
        assert file.token() == "old"
    (tmp_path / "token").write_text("newer\n")
    assert file.token() == "newer"


async def test_interceptors_see_calls_and_streams(server: Server) -> None:
    seen: list[str] = []

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
            seen.append(str(details.method))
            return await continuation(details, request)

    class Stream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):  # type: ignore[no-untyped-def]
            seen.append(str(details.method))
            return await continuation(details, request)

    async with Client(server.address, interceptors=[Unary(), Stream()]) as client:
        await client.create(SessionKey(0, 1))
        async with client.watch(snapshot=True) as watch:
            await anext(watch)
    assert [re.sub(r"^b'|'$", "", method) for method in seen] == [
        "/sessiond.v1.SessionService/CreateSession",
        "/sessiond.v1.SessionService/Subscribe",
    ]


def test_a_client_is_created_outside_the_event_loop() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout=0.2)

        async def call() -> None:
            with pytest.raises(SessiondError):
                await client.has(SessionKey(0, 1))
            await client.close()

        asyncio.run(call())
