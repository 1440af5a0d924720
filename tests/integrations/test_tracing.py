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

from koyeb_session import SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from ..support import ME, PASSWORD
from .conftest import BOTH_LOOPS, HALVES, NEARLY, opened, use

PATHS = ["/v1/account/login", "/v1/account/refresh", "/v1/apps"]
REDACTED = str(("[REDACTED]",))
CAPTURE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS"


anyio_backend = BOTH_LOOPS


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

    def check(self, fake: FakeKoyeb) -> None:
        """Check that it was a login, a refresh and a request, and that no attribute is secret."""
        spans = self._exporter.get_finished_spans()
        attributes: list[Any] = [span.attributes or {} for span in spans]
        urls = [str(found.get("http.url") or found["url.full"]) for found in attributes]
        assert [httpx.URL(url).path for url in urls] == PATHS
        sent = [request.headers.get("authorization", "") for request in fake.requests]
        tokens = [header.removeprefix("Bearer ") for header in sent if header]
        assert len(tokens) == len(PATHS) - 1
        said = [str(span.to_json()) for span in spans]
        assert_no_secret([PASSWORD, "fingerprint", *tokens], *said)
        captured = [name for found in attributes for name in found if ".header." in name]
        assert bool(captured) == self.captures
        signed = [found.get("http.request.header.authorization") for found in attributes]
        assert [str(value) for value in signed if value] == [REDACTED] * len(tokens) * self.captures


@HALVES
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
async def test_session_is_traced(
    half: Any,
    koyeb: str,
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
    spans: Spans,
    *,
    given: bool,
) -> None:
    """Operations and requests have a span each, on its own connections and on a user's client."""
    client: Any = (httpx.Client if half is SessionClient else httpx.AsyncClient)()
    session = half(base_url=koyeb, clock=koyeb_clock, http_client=client if given else None)
    async with opened(client), opened(session):
        await use(session.login(ME, PASSWORD, seon_fp="fingerprint"))
        koyeb_clock.advance(NEARLY)
        assert (await use(session.http.get("/v1/apps"))).status_code == 200
    spans.check(fake_koyeb)


@HALVES
async def test_given_transport_is_traced(half: Any, fake_koyeb: FakeKoyeb) -> None:
    """A transport that is none of httpx's own is wrapped."""
    spans = Spans(captures=False)
    wrap: Any = SyncOpenTelemetryTransport if half is SessionClient else AsyncOpenTelemetryTransport
    async with opened(half(transport=wrap(fake_koyeb.transport, spans.provider))) as session:
        await use(session.login(ME, PASSWORD))
        await use(session.refresh())
        assert (await use(session.http.get("/v1/apps"))).status_code == 200
    spans.check(fake_koyeb)
