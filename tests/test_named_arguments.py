"""The client's arguments by name are those of its constructor, and resolve at run time."""

from __future__ import annotations

import inspect
import typing

import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session._async.arguments import AsyncClientArguments
from koyeb_session._sync.arguments import ClientArguments

BOTH = pytest.mark.parametrize(
    ("client", "arguments"),
    [(AsyncSessionClient, AsyncClientArguments), (SessionClient, ClientArguments)],
)


@BOTH
def test_arguments_by_name_are_the_constructors(client: type, arguments: type) -> None:
    """Each argument of the constructor is there, with the same annotation."""
    parameters = inspect.signature(client, eval_str=True).parameters
    assert typing.get_type_hints(arguments) == {
        name: parameter.annotation for name, parameter in parameters.items()
    }


@BOTH
def test_arguments_by_name_resolve_at_run_time(
    client: type[AsyncSessionClient | SessionClient], arguments: type
) -> None:
    """An injector or a documentation tool can read the parameters of ``from_env``."""
    hints = typing.get_type_hints(client.from_env)
    assert typing.get_args(hints["overrides"]) == (arguments,)
    assert typing.get_type_hints(arguments)["timeout"] is float
