"""Enough of an HTTP/2 server to answer one request after another."""

from __future__ import annotations

import socket
from typing import Any

import h2.config
import h2.connection
import h2.events

from .replies import good
from .server import GoneError, Request, Server


def http2(connection: socket.socket, server: Server) -> None:
    """Answer well, on one connection, until the client leaves."""
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    heads: dict[int, Any] = {}
    bodies: dict[int, bytes] = {}
    while True:
        connection.sendall(state.data_to_send())
        data = connection.recv(65536)
        if not data:
            raise GoneError
        for event in state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                heads[event.stream_id] = event.headers
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, h2.events.StreamEnded):
                stream = event.stream_id
                request = _request(heads.pop(stream), bodies.pop(stream, b""))
                server.requests.append(request)
                state.send_headers(stream, [(":status", "200")])
                state.send_data(stream, good(request), end_stream=True)


def _request(headers: Any, body: bytes) -> Request:
    fields = {bytes(name).decode(): bytes(value).decode() for name, value in headers}
    head = "\r\n".join(f"{name}: {value}" for name, value in fields.items())
    return Request(fields[":method"], fields[":path"], head, body)
