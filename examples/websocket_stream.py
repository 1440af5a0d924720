"""A stream of logs, whose token goes along as a subprotocol, across an expiry and a reconnect."""

import asyncio

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from koyeb_session import AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb

fake = FakeKoyeb(clock=(clock := FakeClock()))
bearer = Subprotocol("Bearer")


def check(connection: ServerConnection, request: Request) -> Response | None:
    good = request.headers["Sec-WebSocket-Protocol"].rpartition(", ")[2] in fake.live_tokens()
    return None if good else connection.respond(401, "refused")


async def logs_of(connection: ServerConnection) -> None:
    await connection.send("running")


async def main(url: str) -> None:
    async with (
        serve(logs_of, "127.0.0.1", 0, process_request=check, subprotocols=[bearer]) as server,
        AsyncSessionClient(base_url=url, token=fake.issue_token(), clock=clock) as session,
    ):
        logs = "ws://{}:{}".format(*server.sockets[0].getsockname())
        for day in (1, 2):
            token = Subprotocol((await session.current_token()).id)  # ask for each connection
            async with connect(logs, subprotocols=[bearer, token]) as stream:
                print(f"day {day}: {await stream.recv(decode=True)}")
            clock.advance(24 * 3600 - 30)


with fake.serve() as where:
    asyncio.run(main(where))
