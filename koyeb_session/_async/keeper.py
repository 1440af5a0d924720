"""Start renewals, one at a time, and let callers wait for the one that serves them."""

from __future__ import annotations

import contextlib
import random
import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from .._concurrency.event_loop.calls import exceptions_only
from .._concurrency.event_loop.deadlines import async_within
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import AsyncWakeup
from .._concurrency.nesting import is_inside_work_of
from .._concurrency.runtime import is_in_step, state_lock
from .._core.deadline import Deadline
from .._core.errors import (
    AuthenticationError,
    KoyebSessionError,
    NotSignedInError,
    StoreError,
    TransportError,
    TransportTimeoutError,
)
from .._core.log import log
from .._core.results import (
    cannot_wait,
    class_and_text,
    renewal_timed_out,
    safe_copy,
    secrets_of,
    with_cause,
)
from .._core.snapshot import Decision, FailedAttempt, Need, Observation, Snapshot, Urgency
from .._core.state import SUPERSEDED
from .._core.tokens import is_of_another
from .listeners import AsyncListeners
from .renewal import AsyncRenewal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .._api.operations import Operation
    from .._core.models import Token
    from .._core.snapshot import LastFailure
    from .._core.state import SessionState
    from .lookout import AsyncLookout
    from .persistence import AsyncPersistence
    from .token_source import AsyncTokenSource

T = TypeVar("T")

Outcome: TypeAlias = Snapshot | KoyebSessionError


class AsyncTokenKeeper:
    """
    Renews a session's token in one shared task at a time.

    No caller owns that task, so cancelling a caller neither stops nor loses it. Snapshots are
    compared by identity. ``state.snapshot is not signed`` means that the session has a newer token
    than the one that signed the request.
    """

    __slots__ = (
        "__weakref__",
        "_lookout",
        "_retry_at",
        "_wakeups",
        "active_tasks",
        "listeners",
        "persistence",
        "source",
        "state",
        "task",
    )

    def __init__(
        self,
        state: SessionState,
        source: AsyncTokenSource,
        persistence: AsyncPersistence | None,
        *,
        active_tasks: set[AsyncSharedTask[Any]],
    ) -> None:
        self._lookout: AsyncLookout | None = None
        self._retry_at: tuple[KoyebSessionError, float] | None = None
        """The last error that is worth another attempt, and when to make it (monotonic)."""
        self._wakeups: tuple[AsyncWakeup, ...] = ()
        self.active_tasks: set[AsyncSharedTask[Any]] = active_tasks
        """Tasks that the client waits for when it closes."""
        self.listeners: AsyncListeners | None = None
        self.persistence: AsyncPersistence | None = persistence
        self.source: AsyncTokenSource = source
        self.state: SessionState = state
        self.task: _SharedRenewal | None = None
        """The current renewal, or the last one."""
        if persistence is not None:
            from .lookout import AsyncLookout  # noqa: PLC0415 - only with a store

            self._lookout = AsyncLookout(state)

    @property
    def renewal(self) -> AsyncRenewal:
        """The steps of a renewal; made at each use, as a session of `for_token` has to be small."""
        return AsyncRenewal(self.state, self.source, self.persistence)

    @property
    def may_wait(self) -> bool:
        """Whether the caller may wait for a change of this session: not if it is inside one."""
        return not (is_in_step() or is_inside_work_of(self.state))

    @property
    def _timeout(self) -> float:
        return self.source.sender.timeout

    # For requests

    async def usable_snapshot(
        self, *, wait_for_renewal: bool = False, deadline: Deadline | None = None
    ) -> Outcome:
        """
        Return a snapshot that can be used now, after a renewal if one is needed.

        ``wait_for_renewal`` waits even for a renewal ahead of need, which may revoke the token.

        Raises:
            Exception: The user's transport, event hook or clock raised it.
        """
        state = self.state
        while True:
            # One observation for each round: the state changes whenever this caller waits.
            seen = state.observe()
            served = self.serve_now(seen, wait_for_renewal=wait_for_renewal)
            if served is not None:
                return served
            old = seen.snapshot
            if seen.decision is Decision.FAIL:
                if await self._look(seen):
                    continue
                return state.no_token_error(seen, _cause(seen))
            # One for all rounds: a token may expire while the store takes its time to save it.
            deadline = deadline or Deadline(self._timeout)
            if deadline.passed:
                error = renewal_timed_out(deadline.seconds)
                return seen.usable or state.no_token_error(seen, error)
            is_ahead = seen.decision is Decision.RENEW_IN_BACKGROUND
            urgency = Urgency.AHEAD if is_ahead else Urgency.NEEDED
            outcome = await self.renew(old, deadline, urgency, seen.failure)
            # Time has passed: the token may still be usable, or may be expired by now.
            if isinstance(outcome, KoyebSessionError):
                seen = state.observe()
                return seen.usable or state.no_token_error(seen, outcome)
            if state.closed:
                seen = state.observe()
                return seen.usable or state.no_token_error(seen, None)
            # Due or not: where a clock is far ahead, another new token would be no better.
            if outcome is not old and not outcome.from_store and state.usable is outcome:
                return outcome
            # The session has changed again, or has taken a token over: decide anew.

    def serve_now(self, seen: Observation, *, wait_for_renewal: bool) -> Outcome | None:
        """Serve a caller without a wait, and begin renewals ahead of need; `None`: it must wait."""
        state, old = self.state, seen.snapshot
        match seen.decision:
            case Decision.USE if old is not None:
                if (
                    old.has_deferred_work(seen.now)
                    and (late := self._pending_save(overdue=True)) is not None
                ):
                    # Marked before it starts, so that the next request starts no second save.
                    old.cancel_check()
                    late.start()
                return old
            case Decision.RENEW_IN_BACKGROUND if old is not None and not wait_for_renewal:
                # Nobody waits: the task runs by itself while the caller uses the old token.
                need = Need(old, state.generation, Urgency.AHEAD, self._timeout, seen.failure)
                self._join_or_start(need)
                return old
            case Decision.FAIL if not self._may_find(seen):
                # In a back-off, or without any means to renew: send nothing.
                return state.no_token_error(seen, _cause(seen))
            case _:
                return None

    def _may_find(self, seen: Observation) -> bool:
        """Return whether others may have saved a newer token, for callers that get none here."""
        return self._lookout is not None and self.may_wait and self._lookout.may_find(seen)

    async def _look(self, seen: Observation) -> bool:
        """Look whether they have; return whether the session has changed."""
        if self._lookout is None or not self._may_find(seen):
            return False
        return await self._lookout.look(seen, self.renewal, self.tell_listeners, self._timeout)

    async def replace_rejected(
        self, signed: Snapshot, deadline: Deadline | None = None
    ) -> Outcome | None:
        """
        Return a newer snapshot, to replay a request whose token was rejected.

        Returns:
            `None` if the caller must accept the 401; see `SessionState.must_accept_401`. So it must
            if the session is now one of another user or organization.
        """
        state = self.state
        if state.must_accept_401(signed):
            return None
        # Otherwise another caller has renewed the token already, and the newer one will do.
        if state.snapshot is signed:
            seen = state.observe()
            # In a back-off of refreshes, the credentials are tried.
            barring = None if seen.may_sign_in else seen.failure
            if barring is not None and barring.bars_refresh(seen.now):
                if not await self._look(seen):
                    return state.no_token_error(seen, barring.error)
            else:
                outcome = await self.renew(signed, deadline, Urgency.REJECTED)
                if isinstance(outcome, KoyebSessionError):
                    return state.no_token_error(state.observe(), outcome)
        newer = state.usable
        return None if newer is not None and is_of_another(signed.token, newer.token) else newer

    async def send(
        self, build: Callable[[Token], Operation[T]], deadline: Deadline
    ) -> T | KoyebSessionError:
        """Send an operation with the current token, and again with a newer one after a 401."""
        state, sender = self.state, self.source.sender
        signed = await self.usable_snapshot(wait_for_renewal=True, deadline=deadline)
        if not isinstance(signed, Snapshot):
            return signed
        outcome = await sender.send(build(signed.token), deadline)
        if not isinstance(outcome, AuthenticationError):
            if not isinstance(outcome, KoyebSessionError):
                state.note_accepted(signed)
            return outcome
        if deadline.passed and not state.must_accept_401(signed):
            return TransportTimeoutError("the token was refused, and no time is left to renew it")
        moved_on = state.snapshot is not signed
        newer = await self.replace_rejected(signed, deadline)
        if not isinstance(newer, Snapshot):
            return outcome if newer is None else newer
        outcome = await sender.send(build(newer.token), deadline)
        # Had it moved on, the newer token may be some time old. This one is brand-new.
        if not isinstance(outcome, KoyebSessionError):
            state.note_accepted(newer)
        elif isinstance(outcome, AuthenticationError) and not moved_on:
            state.mark_rejected(newer)
        return outcome

    # The one renewal

    async def renew(
        self,
        old: Snapshot | None,
        deadline: Deadline | None = None,
        urgency: Urgency = Urgency.REQUESTED,
        failure: LastFailure | None = None,
    ) -> Outcome:
        """
        Start or join the renewal that replaces ``old``, unless it is replaced already.

        Args:
            old: The snapshot that the caller has seen.
            deadline: The end of the wait; `None`: the client's timeout. The renewal itself goes on.
            urgency: How urgently the caller needs it.
            failure: The last failure that the caller has seen.
        """
        state = self.state
        if obstacle := self._obstacle(old, urgency):
            return obstacle
        deadline = Deadline(self._timeout) if deadline is None else deadline
        # The task has at least the client's timeout, as callers with more time may join it.
        seconds = max(deadline.left(), self._timeout)
        need = Need(old, state.generation, urgency, seconds, failure)
        failed: KoyebSessionError | None = None
        attempt = 1
        # A sign-in or sign-out ends the loop, as it has replaced `old` without a renewal.
        while need.generation == state.generation and (task := self._join_or_start(need)):
            outcome = await task.join(deadline.left())
            need = need._replace(failure=state.failure)
            if outcome is None:
                if state.snapshot is not old:
                    break  # the new token is there; the task is only saving it
                if task.under_way:
                    # This caller's time is over. The task goes on for the others.
                    return failed or renewal_timed_out(deadline.seconds)
                if failed is not None:
                    return failed
                # Begin another, as the next caller would; once, as this loop may be ending, too.
                failed = TransportError("the renewal was cut off: its event loop or thread ended")
                continue
            gave_up = task.need.urgency < urgency and self._goes_on_after(outcome, urgency)
            # A task for an earlier snapshot may still be running, for example to save its token.
            # Its outcome says nothing about `old`, so the loop starts again.
            if task.need.old is old and not gave_up:
                if not await self._wait_to_retry(outcome, attempt, need, deadline):
                    return outcome
                attempt += 1
            # Should this caller's time end in the next round, this says more than a timeout.
            failed = outcome if isinstance(outcome, KoyebSessionError) else None
        return self._outcome_without_renewal(need, failed)

    def _goes_on_after(self, outcome: Outcome, urgency: Urgency) -> bool:
        """Return whether a caller goes on where a less urgent renewal gave up."""
        if not isinstance(outcome, KoyebSessionError):
            return False
        seen = self.state.observe()
        needs_token = urgency is Urgency.REJECTED or seen.usable is None
        return isinstance(outcome, StoreError) or (needs_token and seen.may_sign_in)

    def _outcome_without_renewal(self, need: Need, failed: KoyebSessionError | None) -> Outcome:
        """Return the outcome for a caller that joins no renewal: the session has changed."""
        state = self.state
        if error := need.answered_by(state.failure):
            return error
        if state.snapshot is need.old and state.closed:
            if failed is not None:
                return failed
            state.check_open()
        return state.snapshot or SUPERSEDED

    def _obstacle(self, old: Snapshot | None, urgency: Urgency) -> KoyebSessionError | None:
        """Return the error for a caller that must start no renewal, and join none."""
        if old is None and self.state.signed_out and urgency < Urgency.REQUESTED:
            return NotSignedInError("signed out: call login()")
        return None if self.may_wait else cannot_wait("try again")

    async def _wait_to_retry(
        self, outcome: Outcome, attempt: int, need: Need, deadline: Deadline
    ) -> bool:
        """
        Wait until callers that need a token may try again; `False` if they should not.

        The caller waits, not the shared task: that one holds the store's lock, and callers of a
        newer session may be waiting for it.
        """
        if self._retry_at is None or self._retry_at[0] is not outcome:
            return False
        state, (_, at) = self.state, self._retry_at
        if need.urgency < Urgency.REJECTED and state.usable is not None:
            return False
        wait = max(at - time.monotonic(), 0.0)
        if attempt >= self.source.sender.retry.attempts or wait >= deadline.left():
            return False
        with self._listening() as wakeup:
            # A sign-in, for example, ends the wait: there is nothing to try again.
            while (
                state.snapshot is need.old
                and state.generation == need.generation
                and not state.closed
                and (wait := at - time.monotonic()) > 0
            ):
                await wakeup.sleep(wait)
        return True

    def _join_or_start(self, need: Need) -> _SharedRenewal | None:
        """
        Join the current renewal, or start one.

        Returns:
            `None` when the session has moved on from ``need.old``. Reusing an exchanged token trips
            the service's reuse detection and ends the whole session. So does beginning one in the
            midst of beginning another, as a signal handler may: it is `None` there, too. A session
            that is closed begins none: closing waits for those that it finds.
        """
        if is_in_step():
            return None
        # One step under the lock: of two threads that see no task, only one makes it.
        with state_lock:
            if self.state.snapshot is not need.old:
                return None
            task = self.task
            if task is not None and task.under_way and task.need.generation == need.generation:
                return task
            if self.state.closed or need.answered_by(self.state.failure) is not None:
                return None
            task = _SharedRenewal(
                partial(self._run_renewal, need),
                self.tell_listeners,
                seconds=need.seconds * self.source.patience,
                active_tasks=self.active_tasks,
                owner=self.state,
            )
            task.need = need
            self.task = task
            # Before the lock is released: closing looks for such tasks once.
            self.active_tasks.add(task)
        # Outside the lock: where no thread can be started, the work runs right here, and waits.
        task.start()
        return task

    async def _run_renewal(self, need: Need) -> Outcome:
        """
        Do the work of the shared task; return a failure as a value.

        The session may change whenever this task waits. So the result is based on the session at
        the end: if it has a new token then, the callers get that token rather than an error.
        """
        state, old = self.state, need.old
        if need.generation != state.generation or state.snapshot is not old:
            return state.snapshot or SUPERSEDED  # the thread started too late
        raised: Exception | None = None
        renewal = self.renewal
        # The task's own limit: neither the deadline nor a cancellation of a caller reaches it.
        try:
            seconds = need.seconds * self.source.patience
            with exceptions_only():
                outcome = await async_within(seconds, partial(renewal.run, need))
        except TimeoutError:
            outcome = renewal.failed(renewal_timed_out(need.seconds))
        except Exception as exc:  # noqa: BLE001 - the user's clock, transport or event hook
            raised = exc
            tokens = secrets_of(*(its.token for its in (old, state.snapshot) if its is not None))
            cause = safe_copy(exc, (*tokens, *self.source.secrets))
            text = f"the token was not renewed: {class_and_text(type(exc).__name__, cause)}"
            outcome = renewal.failed(with_cause(TransportError(text), cause))
        # Read once for all that follows: another thread may sign in, or out, at any point.
        held = state.snapshot
        if isinstance(outcome, Snapshot) or need.generation != state.generation:
            return held or SUPERSEDED
        if held is not None and held is not old:
            return held  # the renewal succeeded; saving the token then failed or took too long
        self._record_failure(outcome, need)
        # The user's own exception is of interest only to callers that get no token.
        if raised is not None and state.usable is None:
            raise raised
        return outcome.error

    def _record_failure(self, failed: FailedAttempt, need: Need) -> None:
        """Record a failure, and when the waiting callers may try again."""
        before, retry = self.state.failure, self.source.sender.retry
        attempt = 1 if before is None else min(before.failures + 1, retry.attempts)
        chance = random.random()  # noqa: S311 - spreads load
        wait = retry.wait(failed.error, attempt, chance)
        # With the error itself: callers who waited for another renewal must not take this time.
        self._retry_at = None if wait is None else (failed.error, time.monotonic() + wait)
        is_waited_for = need.urgency >= Urgency.REJECTED or self.state.usable is None
        again = is_waited_for and wait is not None
        self.state.record_failure(failed, need.generation, again=again)

    # Life cycle

    def close(self) -> None:
        """Have the session send nothing from now on."""
        self.state.close()

    def listen(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Call ``listener`` after each change of the token; return a function that stops that."""
        if self.listeners is None:
            self.listeners = AsyncListeners()
        self.state.on_change = self._changed
        return self.listeners.add(listener)

    async def renew_ahead_of_need(self, running: Callable[[], bool]) -> None:
        """
        Renew the token ahead of need while ``running()``.

        The caller's own task runs this loop; the renewals are shared tasks as always. The loop
        sleeps until the next check is due. Each change of the session wakes it.
        """
        with self._listening() as wakeup:
            while running():
                try:
                    await self.usable_snapshot(wait_for_renewal=True)
                except Exception:  # noqa: BLE001 - the user's transport or clock
                    if running():
                        log.exception("keep_current() goes on after an error that is not Koyeb's")
                if (late := self._pending_save()) is not None:
                    await late.run()
                await wakeup.sleep(self.state.seconds_to_next_check)

    @contextlib.contextmanager
    def _listening(self) -> Generator[AsyncWakeup]:
        """Give the block a signal that wakes it at each change of the session."""
        wakeup = AsyncWakeup()
        # Replaced as a whole, since `wake` reads the tuple without the lock.
        with state_lock:
            self._wakeups = (*self._wakeups, wakeup)
        self.state.on_change = self._changed
        try:
            yield wakeup
        finally:
            with state_lock:
                self._wakeups = tuple(other for other in self._wakeups if other is not wakeup)

    async def drain(self) -> None:
        """
        Wait for running tasks, each within its own limit, and save an unsaved token.

        The renewal comes first, as it may leave a token to save and a change to report.
        """
        if self.task is not None and self.task.under_way:
            await self.task.wait()
        if self.persistence is not None:
            await self.persistence.drain(self._timeout)
        if self.listeners is not None:
            await self.listeners.drain(self._timeout)
        self.wake()

    def _pending_save(self, *, overdue: bool = False) -> AsyncSharedTask[StoreError | None] | None:
        """See `AsyncPersistence.pending_save`."""
        if self.persistence is None:
            return None
        return self.persistence.pending_save(self.tell_listeners, overdue=overdue)

    def wake(self) -> None:
        """Wake all that wait for a change of the session."""
        for wakeup in self._wakeups:
            wakeup.set()

    def _changed(self, token: Token | None) -> None:
        """Queue a change for the listeners; called while the state lock is held."""
        if self.listeners is not None:
            self.listeners.post(token)
        self.wake()

    async def tell_listeners(self) -> None:
        """Deliver changes to the listeners; each task that may make one ends with this."""
        if self.listeners is not None:
            await self.listeners.tell()


def _cause(seen: Observation) -> KoyebSessionError | None:
    """Return the error of the last renewal, while it is too early for another one."""
    return seen.blocking_failure and seen.blocking_failure.error


class _SharedRenewal(AsyncSharedTask[Outcome]):
    """A renewal in progress, with the need that it was started for."""

    need: Need
