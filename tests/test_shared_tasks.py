"""Shared tasks of threads: one piece of work that many wait for, and that no waiter owns."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from koyeb_session._concurrency.threads import shared_task
from koyeb_session._concurrency.threads.deadlines import remaining, within
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session._concurrency.threads.waiting import Event
from koyeb_session.testing import FakeClock

from .concurrency import PATIENCE, Background, idle, in_child, until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_shared_task_is_shared_by_all_who_wait() -> None:
    """The work runs once, in its own thread; the caller that starts it gets its result, too."""
    go = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        go.wait(PATIENCE)
        return 7

    shared = SharedTask(work)
    assert (shared.outcome, shared.alive) == (None, True)
    with Background() as background:
        leader = background.start(lambda: (shared.run(), threading.current_thread()))
        until(lambda: bool(threads))
        follower = background.start(lambda: shared.join(PATIENCE))
        assert shared.join(0) is None
        assert shared.alive
        assert not shared.succeeded
        go.set()
        assert shared.join(PATIENCE) == follower.result() == 7
        result, thread = leader.result()
    assert result == 7
    assert len(threads) == 1
    assert threads[0] is not thread
    assert not shared.alive
    assert shared.succeeded
    assert shared.outcome == 7


def test_shared_task_raises_what_its_work_raises_to_all_who_wait() -> None:
    """An exception of the user's transport reaches every caller unchanged."""
    error = KeyError("theirs")

    def work() -> int:
        raise error

    shared = SharedTask(work, seconds=PATIENCE)
    shared.start()
    shared.wait()  # `wait` does not raise
    for wait in (shared.join, shared.run):
        with pytest.raises(KeyError) as caught:
            wait()
        assert caught.value is error
    assert not shared.alive
    assert not shared.succeeded


def test_shared_task_is_started_once_whoever_starts_it() -> None:
    """Of those who lead and those who join, one starts it."""
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            shared._run()  # as in a second thread

    shared = SharedTask(work, seconds=PATIENCE)
    for _ in range(3):
        shared.start()
        shared.run(PATIENCE)
        shared.join(PATIENCE)
    assert runs == [1]


@pytest.mark.parametrize("wait", [SharedTask[int].join, SharedTask[int].wait_done])
def test_shared_task_is_launched_by_who_waits_when_its_starter_was_interrupted(
    wait: Callable[[SharedTask[int], float], object],
) -> None:
    """A signal handler may raise before the thread starts; catches a wait for no thread."""
    shared = SharedTask(lambda: 7, seconds=PATIENCE)
    wait(shared, PATIENCE)
    assert shared.outcome == 7


@pytest.mark.parametrize("timeout", [0.25, 1.0, 10.0, None])
def test_shared_task_is_waited_for_no_longer_than_asked(
    timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A wait of two parts has one limit.

    A task that should have ended is given one second more; a caller with a timeout of its own is
    not kept that long.
    """
    go, begun = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return go.wait(PATIENCE)

    shared = SharedTask(work, seconds=PATIENCE)
    shared.start()
    assert begun.wait(PATIENCE)
    clock = FakeClock()
    waits: list[float] = []

    def wait(_: Event, seconds: float) -> bool:
        waits.append(seconds)
        clock.advance(seconds)
        return False

    with monkeypatch.context() as patched:
        patched.setattr(shared_task, "time", clock)
        patched.setattr(Event, "wait", wait)
        patched.setattr(shared, "_ends", clock.monotonic() + 5)
        shared.wait(timeout)
    go.set()
    assert abs(sum(waits) - (6 if timeout is None else timeout)) < 1e-6
    assert shared.join(PATIENCE)


def test_shared_task_has_a_deadline_of_its_own() -> None:
    """Work that all share is not cut by the time that its starter had left."""

    def started() -> SharedTask[float]:
        shared = SharedTask(lambda: remaining(100), seconds=PATIENCE)
        shared.start()
        return shared

    assert within(0, started).join(PATIENCE) == 100


def test_shared_task_runs_in_a_daemon_thread_when_started() -> None:
    """Nobody need wait for it, and it keeps no process alive."""
    seen: list[object] = []
    done = threading.Event()

    def work() -> None:
        thread = threading.current_thread()
        seen.extend([thread.daemon, thread.name, variable.get(), thread is caller])

    caller = threading.current_thread()
    variable.set("copied")
    shared: SharedTask[None] = SharedTask(work, done.set)
    shared.start()
    assert done.wait(PATIENCE)
    assert seen == [True, "koyeb-session", "copied", False]
    assert not shared.alive


def no_thread(_: object) -> bool:
    """Begin no thread, as where there are too many."""
    return False


def test_shared_task_runs_in_the_calling_thread_when_there_can_be_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With too many threads, or at the interpreter's end, the work is still done."""
    shared = SharedTask(threading.current_thread, seconds=5)
    with monkeypatch.context() as patch:
        patch.setattr(shared_task, "launch", no_thread)
        assert shared.run(1) is threading.current_thread()
    assert not shared.alive


def test_shared_task_lets_those_who_wait_go_before_what_comes_then() -> None:
    """No waiter waits for the work in `on_done`."""
    go = threading.Event()

    def then() -> None:
        assert go.wait(PATIENCE)

    shared = SharedTask(lambda: 7, then)
    shared.start()
    assert shared.join(PATIENCE) == 7
    assert not shared.alive
    go.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_shared_task_that_is_interrupted_lets_all_go() -> None:
    """An exception that ends the thread reaches no caller; catches callers that wait forever."""

    def work() -> int:
        raise SystemExit

    shared = SharedTask(work)
    assert shared.run() is None
    assert shared.join(PATIENCE) is None
    assert not shared.alive
    assert not shared.succeeded
    idle()


def test_shared_task_of_the_parent_is_dead_in_a_forked_child() -> None:
    """The thread that does the work is not there after a fork."""
    go = threading.Event()
    shared = SharedTask(lambda: go.wait(PATIENCE))
    shared.start()
    assert in_child(lambda: not shared.alive and shared.join(60) is None)

    def waits() -> bool:
        shared.wait_done(60)
        return True

    assert in_child(waits)
    unstarted = SharedTask(lambda: go.wait(PATIENCE))
    assert in_child(lambda: unstarted.run(60) is None)
    assert shared.alive
    go.set()
    assert shared.join(PATIENCE) is True


def test_a_thread_that_comes_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another task has replaced it: its work would be done twice."""
    done: list[str] = []
    shared = SharedTask(lambda: done.append("late"), seconds=0.01)
    monkeypatch.setattr(time, "monotonic", lambda: math.inf)
    assert not shared.alive
    shared._run()
    assert done == []
    assert shared._done.is_set()
    assert not shared.succeeded


def test_shared_task_of_another_process_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork came between its making and its start."""
    shared = SharedTask(int)
    monkeypatch.setattr("koyeb_session._concurrency.threads.shared_task.current_process", object)
    shared.start()
    assert not shared._begun


def test_shared_task_that_is_started_once_more_after_its_end_is_forgotten_again() -> None:
    """Catches one that is listed for good, as its second starter came late."""
    active_tasks: set[SharedTask[Any]] = set()
    runs: list[int] = []
    shared = SharedTask(lambda: runs.append(1), active_tasks=active_tasks)
    shared.start()
    shared.wait_done(PATIENCE)
    shared._launched = False  # as the second one has seen it
    shared.start()
    until(lambda: shared not in shared_task._at_exit)
    assert not active_tasks
    assert runs == [1]


def test_end_of_the_interpreter_waits_for_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told by `atexit`, and waits until the work should have ended."""
    monkeypatch.setattr(shared_task, "_ended", None)  # as it is again after the test
    go = threading.Event()
    shared = SharedTask(lambda: go.wait(PATIENCE), seconds=PATIENCE)
    shared.start()
    threading.Timer(0.01, go.set).start()
    shared_task._finish()
    assert shared.succeeded


def test_shared_task_that_has_to_be_alone_is_not_done_without_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would keep the thread that has to go on."""
    monkeypatch.setattr(shared_task, "launch", no_thread)
    shared = SharedTask(lambda: 1)
    shared.start(alone=True)
    assert not shared.alive
    assert shared.join(PATIENCE) is None
    other = SharedTask(lambda: 1)
    other.start()
    assert other.outcome == 1


def test_shared_task_is_not_waited_for_in_its_own_thread() -> None:
    """A finalizer may ask for it there."""
    shared: SharedTask[object] = SharedTask(lambda: shared.join(PATIENCE), seconds=PATIENCE)
    shared.start()
    assert shared.join(PATIENCE) is None
    assert shared.succeeded
