from __future__ import annotations

from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, aio_client_interceptors
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sessiond import Client, Events, SessionKey, Subscribed

from .server import Server, until

EXPECTED = {"CreateSession", "BatchCreateSessions", "GrantLease", "Subscribe"}


def spans() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def names(exporter: InMemorySpanExporter) -> set[str]:
    return {span.name.rsplit("/", 1)[-1] for span in exporter.get_finished_spans()}


async def use(client: Client) -> None:
    async with client:
        async with client.watch() as watch:
            assert isinstance(await anext(watch), Subscribed)
            await client.create(SessionKey(0, 1))
            assert isinstance(await anext(watch), Events)
        with await (gateway := await client.gateway("gw-1")).connect(SessionKey(0, 2)):
            pass
        await gateway.stop(linger=0)


async def test_interceptors_of_opentelemetry(server: Server) -> None:
    provider, exporter = spans()
    interceptors = aio_client_interceptors(tracer_provider=provider)  # type: ignore[no-untyped-call]
    await use(Client(server.address, interceptors=interceptors))
    await until(lambda: names(exporter) >= EXPECTED)


async def test_instrumentation_of_opentelemetry(server: Server) -> None:
    provider, exporter = spans()
    instrumentor = GrpcAioInstrumentorClient()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=provider)
    try:
        await use(Client(server.address))
    finally:
        instrumentor.uninstrument()
    await until(lambda: names(exporter) >= EXPECTED)
