"""Threads that are kept for more work: the objects that they refer to, and their ends."""

from __future__ import annotations

import contextvars
import gc
import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from koyeb_session import SessionClient
from koyeb_session._concurrency.threads import launch as launching
from koyeb_session._concurrency.threads import shared_task
from koyeb_session._concurrency.threads.launch import end_idle_threads, launch
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeKoyeb

from ..concurrency import PATIENCE, idle, in_child, until
from ..support import inside, raising
from .lines import limit
from .programs import run_python

pytestmark = pytest.mark.blocks_loop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end without idle threads; within the test they wait for as long as it takes."""
    idle()
    # No context of its own: it would end before the test's changes, and these would undo it.
    monkeypatch.setattr(launching, "_IDLE", PATIENCE)
    yield
    idle()


def run(task: SharedTask[object]) -> object:
    """Run a task, and wait until its thread is idle."""
    result = task.run(PATIENCE)
    until(lambda: bool(launching._idle))
    return result


def own_threads() -> list[threading.Thread]:
    """List the session's own threads."""
    return [it for it in threading.enumerate() if it.name == launching.NAME]


def test_one_thread_does_one_task_after_another() -> None:
    """Each has its own context; catches a thread for each task, and a variable that stays."""

    def work() -> object:
        seen = variable.get(), threading.current_thread()
        variable.set("another task's")
        return seen

    first = run(SharedTask(work))
    variable.set("mine")
    second = run(SharedTask(work))
    variable.set("unset")
    (thread,) = own_threads()
    assert first == ("unset", thread)
    assert second == ("mine", thread)
    assert thread.daemon


def test_task_never_waits_for_another_one() -> None:
    """One that hangs has a thread of its own; catches a queue before one thread."""
    go = threading.Event()
    run(SharedTask(int))
    hanging = [SharedTask(lambda: go.wait(PATIENCE)) for _ in range(5)]
    for task in hanging:
        task.start()
    assert SharedTask(lambda: 7).run(PATIENCE) == 7
    assert all(task.alive for task in hanging)
    go.set()
    for task in hanging:
        assert task.run(PATIENCE)
    assert SharedTask(lambda: 7).run(PATIENCE) == 7


def test_few_threads_are_kept() -> None:
    """Catches a crowd that stays after a moment with many tasks."""
    go = threading.Event()
    tasks = [SharedTask(lambda: go.wait(PATIENCE)) for _ in range(10)]
    for task in tasks:
        task.start()
    until(lambda: len(own_threads()) == 10)
    go.set()
    until(lambda: len(own_threads()) == launching._KEPT)


def test_idle_thread_refers_to_nothing_that_it_has_done() -> None:
    """A session, its token and its tasks can be collected while the thread waits."""
    fake = FakeKoyeb()
    session = SessionClient(
        transport=fake.transport, token=fake.issue_token(), store=MemoryTokenStore()
    )
    session.refresh()
    session.close()
    token = session.token
    assert token is not None
    refers = [weakref.ref(it) for it in (session, inside(session).listeners, token) if it]
    until(lambda: len(launching._idle) == len(own_threads()))  # one of them held the store's lock
    del session, token
    gc.collect()
    assert [it for it in (ref() for ref in refers) if it is not None] == []
    assert launching._idle


def test_idle_thread_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has come to rest has no thread of the session's."""
    with monkeypatch.context() as patched:
        patched.setattr(launching, "_IDLE", 0.001)
        threads = {SharedTask(threading.current_thread).run(PATIENCE) for _ in range(3)}
        until(lambda: not any(thread and thread.is_alive() for thread in threads))
    assert not launching._idle


def test_thread_that_is_about_to_end_takes_work_or_refuses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both decide in one step; catches work that is given to a thread that never does it."""
    monkeypatch.setattr(launching, "_IDLE", 0)
    ended, late = launching._IdleThread(), launching._IdleThread()
    assert ended.take() is None
    assert not ended.give(int)
    late._given[None] = int  # a signal handler has raised before the thread was called
    assert not late.give(float)
    assert late.take() is int


def test_work_of_a_finalizer_is_not_given_to_the_thread_that_it_has_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The collector may come when its thread is listed; it would wait for itself."""
    monkeypatch.setattr(shared_task, "_FIRST_LOOK", PATIENCE)  # no second thread comes to help
    take = launching._IdleThread.take
    results: list[object] = []

    def interrupted(idle: launching._IdleThread) -> object:
        if not results:
            results.append(SharedTask(threading.get_ident).join(PATIENCE))
        return take(idle)

    with monkeypatch.context() as patched:
        patched.setattr(launching._IdleThread, "take", interrupted)
        own = SharedTask(threading.get_ident).join(PATIENCE)
        until(lambda: bool(results))
    assert results[0] not in {own, None}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_idle_thread_that_fails_is_listed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out; catches work for a thread that has ended."""
    monkeypatch.setattr(shared_task, "_FIRST_LOOK", PATIENCE)  # no second thread comes to help
    with monkeypatch.context() as patched:
        patched.setattr(launching._IdleThread, "take", raising(MemoryError()))
        thread = SharedTask(threading.current_thread).run(PATIENCE)
        assert thread is not None
        thread.join(PATIENCE)
    assert not launching._idle
    assert SharedTask(lambda: 7).run(PATIENCE) == 7


@pytest.mark.parametrize("keeps", [True, False])
def test_nothing_is_lost_when_a_handler_raises_at_any_line_of_a_launch(
    monkeypatch: pytest.MonkeyPatch, *, keeps: bool
) -> None:
    """Work is given as a whole or not; catches an idle thread that nothing reaches any more."""
    monkeypatch.setattr(launching, "_IDLE", 0.02)  # so late may given work be
    for at in itertools.count(1):
        if keeps:
            SharedTask(int).run(PATIENCE)
        else:
            end_idle_threads()
        done: list[int] = []
        line, error = limit(partial(launch, partial(done.append, at)), at)
        if error is None:
            until(lambda: done == [at])  # noqa: B023 - waits within this round
        del error  # with its frames
        assert SharedTask(lambda: 7).run(PATIENCE) == 7
        idle()
        assert done in ([at], []), at
        assert not launching._idle
        if not line.reached:
            return


FORKS: Final = """
import os, sys, time
threads = []
os.register_at_fork(before=lambda: threads.append(os.listdir("/proc/self/task")))
from koyeb_session import PasswordCredentials, SessionClient
from koyeb_session._concurrency.threads import launch
launch._IDLE = 1000
who = PasswordCredentials("me@example.com", "correct horse")
session = SessionClient(base_url=sys.argv[1], credentials=who)
for _ in range(10):
    session.refresh()
    while not launch._idle: time.sleep(0.001)
    child = os.fork()
    if not child:
        assert not launch._idle
        session.refresh()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert [len(it) for it in threads] == [1] * 10, threads
session.close()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_fork_finds_no_idle_thread() -> None:
    """From Python 3.12 on a fork of a process with several threads is a warning."""
    fake = FakeKoyeb(refresh="keeps")
    with fake.serve() as url:
        ended = run_python("-Werror", "-c", FORKS, url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def too_late(_: object, work: object) -> bool:
    """Give nothing, as where a thread is idle only once a fork has looked."""
    return work is too_late


def test_forked_child_has_no_idle_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have become idle since; catches work for a thread that is not there."""
    monkeypatch.setattr(shared_task, "_FIRST_LOOK", PATIENCE)  # no second thread comes to help
    run(SharedTask(int))
    with monkeypatch.context() as patched:
        patched.setattr(launching._IdleThread, "give", too_late)
        before = list(launching._idle)
        pid = os.getpid()

        def works() -> bool:
            patched.undo()
            return os.getpid() != pid and SharedTask(lambda: 7).run(PATIENCE) == 7

        assert in_child(works)
    assert launching._idle == before


EXIT: Final = """
import atexit, sys, time
from koyeb_session import SessionClient
from koyeb_session._concurrency.threads import launch
launch._IDLE = 1000
session = SessionClient(base_url=sys.argv[1], token=sys.argv[2])
LAST
session.refresh()
while not launch._idle: time.sleep(0.001)
"""
LAST: Final = """
@atexit.register
def last():
    session.refresh()
    session.close()
    print("200")
"""


@pytest.mark.parametrize("last", [LAST, ""])
def test_idle_thread_keeps_no_program_from_its_end(last: str) -> None:
    """A hook at the end may still use it, when no thread starts any more."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        token = fake.issue_token()
        ended = run_python("-Werror", "-c", EXIT.replace("LAST", last), url, token)
    assert (ended.returncode, ended.stdout) == (0, "200\n" if last else ""), ended.stderr
    assert fake.exchanges() == (2 if last else 1)


LATE: Final = """
import sys, time
from koyeb_session._concurrency.threads import launch
from koyeb_session._concurrency.threads.shared_task import SharedTask
launch._IDLE = 1000
class Late:
    def __init__(self):
        self.is_finalizing, self.write, self.task = sys.is_finalizing, sys.stdout.write, SharedTask
    def __del__(self):
        self.write(f"{self.is_finalizing()} {self.task(int).run(1)}")
SharedTask(int).run()
while not launch._idle: time.sleep(0.001)
late = Late()
"""


def test_finalizer_at_the_end_gives_nothing_to_a_thread_that_no_longer_runs() -> None:
    """Python drops a program's objects when no other thread runs; catches a wait for one."""
    ended = run_python("-Werror", "-c", LATE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True 0", "")
