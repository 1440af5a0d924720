"""The OpenAI client on a session's token, for a model that one serves behind Koyeb's sign-in."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import openai
import pytest
from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse

from koyeb_session import SessionClient
from koyeb_session.httpx2 import auth_for
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import PASSWORDS
from .conftest import HALVES, NEARLY, Serve, opened, use

HELLO: Any = [{"role": "user", "content": "Hello?"}]
Model = tuple[str, list[int]]
"""Where it is, and the statuses that it has answered with."""


@pytest.fixture
def model(fake_koyeb: FakeKoyeb, serve: Serve) -> Iterator[Model]:
    """Serve a model that accepts the tokens that Koyeb does."""
    app = FastAPI()
    statuses: list[int] = []

    def words() -> Iterator[str]:
        for word in ("Good ", "day"):
            said = {"role": "assistant", "content": word}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            yield f"data: {json.dumps({**chunk, 'choices': [{'index': 0, 'delta': said}]})}\n\n"
        yield "data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any], authorization: Annotated[str, Header()]) -> Response:
        is_good = authorization.removeprefix("Bearer ") in fake_koyeb.live_tokens()
        statuses.append(200 if is_good else 401)
        if not is_good:
            return JSONResponse({"error": {"message": "who?"}}, 401)
        if body.get("stream"):
            return StreamingResponse(words(), media_type="text/event-stream")
        said = {"role": "assistant", "content": "Good day"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        return JSONResponse({**answer, "choices": [choice]})

    with serve(app) as url:
        yield url, statuses


async def text_of(stream: Any) -> str:
    """Read a stream of either half."""
    chunks = [chunk async for chunk in stream] if hasattr(stream, "__aiter__") else [*stream]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@HALVES
async def test_client(
    half: Any, koyeb: str, model: Model, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """It is answered across expiries and a revocation, also in a stream."""
    where, statuses = model
    is_blocking = half is SessionClient
    http: Any = httpx2.Client if is_blocking else httpx2.AsyncClient
    kind: Any = openai.OpenAI if is_blocking else openai.AsyncOpenAI
    session = half(
        base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock, allowed_origins=[where]
    )
    client = kind(
        base_url=f"{where}/v1",
        api_key="unused",
        http_client=http(auth=auth_for(session)),
        max_retries=0,
    )

    async def complete(**more: Any) -> Any:
        return await use(client.chat.completions.create(model="m", messages=HELLO, **more))

    async with opened(session), opened(client):
        for _ in range(3):
            assert (await complete()).choices[0].message.content == "Good day"
            koyeb_clock.advance(NEARLY)
        assert await text_of(await complete(stream=True)) == "Good day"
        assert fake_koyeb.exchanges() == 3
        assert statuses == [200] * 4
        fake_koyeb.revoke_all()
        assert (await complete()).choices[0].message.content == "Good day"
    assert statuses == [200, 200, 200, 200, 401, 200]
