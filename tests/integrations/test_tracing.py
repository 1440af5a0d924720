"""OpenTelemetry's instrumentation of httpx: its spans of a session hold no secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.instrumentation.httpx import (
    AsyncOpenTelemetryTransport,
    HTTPXClientInstrumentor,
    SyncOpenTelemetryTransport,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from .conftest import NEARLY

OPERATIONS = ["/v1/account/login", "/v1/account/refresh"]
REDACTED = str(("[REDACTED]",))
CAPTURE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on asyncio and on trio."""
    backend: str = request.param
    return backend


@pytest.fixture(params=["plain", "captured"])
def spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Instrument httpx: as it is, or with all headers captured but those that hold secrets."""
    if request.param == "captured":
        for which in ("CLIENT_REQUEST", "CLIENT_RESPONSE"):
            monkeypatch.setenv(f"{CAPTURE}_{which}", ".*")
        monkeypatch.setenv(f"{CAPTURE}_SANITIZE_FIELDS", "authorization,seon-fp")
    spans = Spans(captures=request.param == "captured")
    HTTPXClientInstrumentor().instrument(tracer_provider=spans.provider)
    yield spans
    HTTPXClientInstrumentor().uninstrument()


class Spans:
    """The spans that were seen."""

    def __init__(self, *, captures: bool) -> None:
        self.captures = captures
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def check(self, fake: FakeKoyeb, *paths: str) -> None:
        """Check that it was these requests, and that no secret is in any attribute."""
        spans = self._exporter.get_finished_spans()
        attributes: list[Any] = [span.attributes or {} for span in spans]
        urls = [str(found.get("http.url") or found["url.full"]) for found in attributes]
        assert [httpx.URL(url).path for url in urls] == [*paths]
        sent = [request.headers.get("authorization", "") for request in fake.requests]
        tokens = [header.removeprefix("Bearer ") for header in sent if header]
        assert len(tokens) == len(paths) - 1
        said = [str(span.to_json()) for span in spans]
        assert_no_secret(["correct horse", "fingerprint", *tokens], *said)
        captured = [name for found in attributes for name in found if ".header." in name]
        assert bool(captured) == self.captures
        signed = [found.get("http.request.header.authorization") for found in attributes]
        assert [str(value) for value in signed if value] == [REDACTED] * len(tokens) * self.captures


async def test_async_session_is_traced(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, spans: Spans
) -> None:
    """Operations and requests have a span each, on connections of the session's own."""
    async with AsyncSessionClient(base_url=koyeb, clock=koyeb_clock) as session:
        await session.login("me@example.com", "correct horse", seon_fp="fingerprint")
        koyeb_clock.advance(NEARLY)
        assert (await session.http.get("/v1/apps")).status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")


def test_blocking_session_is_traced(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, spans: Spans
) -> None:
    """So has the blocking half."""
    with SessionClient(base_url=koyeb, clock=koyeb_clock) as session:
        session.login("me@example.com", "correct horse", seon_fp="fingerprint")
        koyeb_clock.advance(NEARLY)
        assert session.http.get("/v1/apps").status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")


async def test_given_async_client_is_traced(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, spans: Spans
) -> None:
    """So have operations on a client of the user's."""
    async with (
        httpx.AsyncClient() as client,
        AsyncSessionClient(base_url=koyeb, clock=koyeb_clock, http_client=client) as session,
    ):
        await session.login("me@example.com", "correct horse", seon_fp="fingerprint")
        koyeb_clock.advance(NEARLY)
        assert (await session.http.get("/v1/apps")).status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")


def test_given_client_is_traced(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, spans: Spans
) -> None:
    """So has the blocking half there."""
    with (
        httpx.Client() as client,
        SessionClient(base_url=koyeb, clock=koyeb_clock, http_client=client) as session,
    ):
        session.login("me@example.com", "correct horse", seon_fp="fingerprint")
        koyeb_clock.advance(NEARLY)
        assert session.http.get("/v1/apps").status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")


async def test_given_async_transport_is_traced(fake_koyeb: FakeKoyeb) -> None:
    """A transport that is none of httpx's own is wrapped."""
    spans = Spans(captures=False)
    transport = AsyncOpenTelemetryTransport(fake_koyeb.transport, spans.provider)
    async with AsyncSessionClient(transport=transport) as session:
        await session.login("me@example.com", "correct horse")
        await session.refresh()
        assert (await session.http.get("/v1/apps")).status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")


def test_given_transport_is_traced(fake_koyeb: FakeKoyeb) -> None:
    """So is a blocking one."""
    spans = Spans(captures=False)
    transport = SyncOpenTelemetryTransport(fake_koyeb.transport, spans.provider)
    with SessionClient(transport=transport) as session:
        session.login("me@example.com", "correct horse")
        session.refresh()
        assert session.http.get("/v1/apps").status_code == 200
    spans.check(fake_koyeb, *OPERATIONS, "/v1/apps")
