"""The output of tools that show an exception, for an error of a store."""

from __future__ import annotations

from traceback import format_exception

from koyeb_session.testing import assert_no_secret

from ..walkers import WALKERS


def assert_none_shows(error: BaseException, secrets: tuple[str, ...], file: str) -> None:
    """
    Assert that no tool shows a secret of an error, in whichever library's frames.

    The test in ``file``, which knows the secrets, is left out.
    """
    texts = format_exception(error)
    for walk in WALKERS.values():
        frames = [*walk(error)]
        assert frames, walk.__name__
        texts += [text for place, text in frames if place != file]
    assert_no_secret(secrets, *texts)
