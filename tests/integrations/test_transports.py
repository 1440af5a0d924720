"""Other ways to the service: each for a login, and for a request that is renewed on the way."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
import trustme
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from .conftest import NEARLY, Serve


async def tour(url: str, transport: httpx.AsyncBaseTransport, koyeb_clock: FakeClock) -> str:
    """Sign in, and make a request whose token is renewed on the way; give its HTTP version."""
    async with AsyncSessionClient(base_url=url, transport=transport, clock=koyeb_clock) as session:
        token = await session.login("me@example.com", "correct horse")
        koyeb_clock.advance(NEARLY)
        answer = await session.http.get("/v1/apps")
        assert answer.status_code == 200
        assert session.token != token
        return answer.http_version


async def test_http2(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, tmp_path: Path) -> None:
    """HTTP/2, over TLS."""
    authority: Any = trustme.CA()  # partly typed
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile = config.keyfile = str(tmp_path / "server.pem")
    stop = asyncio.Event()
    hypercorn_serve: Any = vars(hypercorn.asyncio)["serve"]  # knows only types of its own
    server = asyncio.create_task(
        hypercorn_serve(fake_koyeb.app, config, shutdown_trigger=stop.wait)
    )
    transport = httpx.AsyncHTTPTransport(http2=True, verify=context, retries=5)
    assert await tour(f"https://localhost:{port}", transport, koyeb_clock) == "HTTP/2"
    stop.set()
    await server


async def test_unix_socket(
    fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, serve: Serve, tmp_path: Path
) -> None:
    """A Unix socket."""
    path = str(tmp_path / "s")
    with serve(fake_koyeb.app, path) as url:
        await tour(url, httpx.AsyncHTTPTransport(uds=path), koyeb_clock)


async def test_proxy(koyeb: str, koyeb_clock: FakeClock, proxy: str) -> None:
    """A proxy."""
    await tour(koyeb, httpx.AsyncHTTPTransport(proxy=proxy), koyeb_clock)


async def test_spans(koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> None:
    """OpenTelemetry sees operations and requests, and no secret."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    HTTPXClientInstrumentor().instrument(tracer_provider=provider)
    try:
        await tour(koyeb, httpx.AsyncHTTPTransport(), koyeb_clock)
    finally:
        HTTPXClientInstrumentor().uninstrument()
    spans = exporter.get_finished_spans()
    attributes = [span.attributes or {} for span in spans]
    urls = [str(found.get("http.url") or found["url.full"]) for found in attributes]
    paths = [httpx.URL(text).path for text in urls]
    assert paths == ["/v1/account/login", "/v1/account/refresh", "/v1/apps"]
    sent = [request.headers.get("authorization", "") for request in fake_koyeb.requests]
    secrets = ["correct horse", *(header.removeprefix("Bearer ") for header in sent[1:])]
    assert_no_secret(secrets, *(span.to_json() for span in spans))


@pytest.mark.blocks_loop
async def test_blocking_session_in_running_loop(
    fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """In a notebook, whose kernel runs a loop in this very thread, the blocking session works."""
    with (
        fake_koyeb.serve() as url,
        SessionClient(base_url=url, clock=koyeb_clock) as session,
    ):
        session.login("me@example.com", "correct horse")
        koyeb_clock.advance(NEARLY)
        assert session.http.get("/v1/apps").status_code == 200
        assert fake_koyeb.exchanges() == 1
        assert "good for 1 d" in repr(session)
        assert session.token is not None
        assert_no_secret([session.token.id], session)
