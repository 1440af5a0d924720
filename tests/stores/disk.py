"""A disk of the tests' own, that can be full or read-only for real."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

SIZE = 64 * 1024
"""Bytes; a page of memory is 4096 of them in most places."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the system."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Disk:
    """A file system in memory, mounted for one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no space at all."""
        with self._filler.open("wb", buffering=0) as file:
            while file.tell() < 2 * SIZE:
                try:
                    file.write(bytes(512))
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC  # noqa: PT017 - the loop's end is the failure
                    return
        pytest.fail("the disk is larger than it should be")

    def empty(self) -> None:
        """Make space again."""
        self._filler.unlink()

    def freeze(self) -> None:
        """Let nobody write."""
        self._remount("ro")

    def thaw(self) -> None:
        """Let people write again."""
        self._remount("rw")

    def names(self) -> set[str]:
        """List the files there, except for the one that fills it."""
        return {path.name for path in self.path.iterdir()} - {self._filler.name}

    @contextlib.contextmanager
    def mounted(self, path: Path) -> Generator[None]:
        """Mount a file of the disk by itself, on an empty one."""
        source = path.with_name("source")
        for file in (source, path):
            file.touch()
        run("mount", "--bind", str(source), str(path)).check_returncode()
        try:
            source.unlink()  # as in a container, which does not see it
            yield
        finally:
            run("umount", str(path)).check_returncode()

    def _remount(self, how: str) -> None:
        run("mount", "-o", f"remount,{how}", str(self.path)).check_returncode()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a small disk, which takes root on Linux."""
    path = tmp_path / "disk"
    path.mkdir()
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("there is no mount command here that is Linux's")
    mounted = run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path))
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield Disk(path)
    run("umount", "--lazy", str(path)).check_returncode()
