"""Start renewals, one at a time, and let callers wait for the one that serves them."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from .._concurrency.event_loop.deadlines import async_time_limit
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import AsyncWakeup, async_sleep
from .._concurrency.runtime import is_in_step, state_lock
from .._core.deadline import Deadline
from .._core.errors import (
    KoyebSessionError,
    NotSignedInError,
    StoreError,
    TransportError,
)
from .._core.log import fields, log
from .._core.results import cannot_wait, not_signed_out, renewal_timed_out, safe_copy, with_cause
from .._core.snapshot import Decision, FailedAttempt, NewToken, Phase, Snapshot, Urgency
from .._core.state import SUPERSEDED
from .listeners import AsyncListeners

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._core.models import Token
    from .._core.policy import RetryPolicy
    from .._core.state import SessionState
    from .persistence import AsyncPersistence
    from .renewal import AsyncRenewal
    from .token_source import AsyncTokenSource

Outcome: TypeAlias = Snapshot | KoyebSessionError


class AsyncTokenKeeper:
    """
    Renews a session's token in one shared task at a time.

    No caller owns that task, so cancelling a caller neither stops nor loses it. Snapshots are
    compared by identity. ``state.snapshot is not signed`` means that the session has a newer token
    than the one that signed the request.
    """

    __slots__ = (
        "_active_tasks",
        "_persistence",
        "_renewal",
        "_retry_at",
        "_source",
        "_task",
        "_wakeups",
        "listeners",
        "state",
    )

    def __init__(
        self,
        state: SessionState,
        renewal: AsyncRenewal,
        source: AsyncTokenSource,
        persistence: AsyncPersistence | None,
        *,
        active_tasks: set[AsyncSharedTask[Any]],
    ) -> None:
        self._task: _SharedRenewal | None = None
        self._persistence = persistence
        self._wakeups: tuple[AsyncWakeup, ...] = ()
        self._renewal = renewal
        self._retry_at: tuple[KoyebSessionError, float] | None = None
        """The last error that is worth another attempt, and when to make it (monotonic)."""
        self._source = source
        self._active_tasks = active_tasks
        self.listeners: AsyncListeners | None = None
        self.state: SessionState = state

    @property
    def _retry(self) -> RetryPolicy:
        return self._source.sender.retry

    @property
    def _timeout(self) -> float:
        return self._source.sender.timeout

    # For requests

    async def usable_snapshot(
        self, *, wait_for_renewal: bool = False, timeout: float | None = None
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
            old = seen.snapshot
            match seen.decision:
                case Decision.USE if old is not None:
                    if (
                        old.has_deferred_work(seen.now)
                        and (late := self._pending_save()) is not None
                    ):
                        # Marked before it starts, so that the next request starts no second save.
                        state.mark_saved(old)
                        late.start()
                    return old
                case Decision.RENEW_IN_BACKGROUND if old is not None and not wait_for_renewal:
                    # Nobody waits: the task runs by itself while the caller uses the old token.
                    self._join_or_start(old, state.generation, self._timeout, Urgency.AHEAD)
                    return old
                case Decision.FAIL:
                    # In a back-off, or without any means to renew: send nothing.
                    return state.no_token_error(
                        seen, seen.blocking_failure and seen.blocking_failure.error
                    )
                case Decision.RENEW_IN_BACKGROUND:
                    outcome = await self.renew(old, timeout, Urgency.AHEAD)
                case _:
                    outcome = await self.renew(old, timeout, Urgency.NEEDED)
            # Time has passed: the token may still be usable, or may be expired by now.
            if isinstance(outcome, KoyebSessionError):
                seen = state.observe()
                return seen.usable or state.no_token_error(seen, outcome)
            if state.closed:
                seen = state.observe()
                return seen.usable or state.no_token_error(seen, None)
            if self._is_enough(outcome, old):
                return outcome
            # The session has changed again during the wait: decide anew.

    def _is_enough(self, new: Snapshot, old: Snapshot | None) -> bool:
        """Return whether a caller who has waited for a renewal need not wait for another one."""
        state = self.state
        if new is not state.snapshot:
            return False
        if not new.is_due(state.clock):
            return True
        # A clock that is far ahead makes each new token due: another one would be no better.
        return new is not old and not new.from_store and state.usable is new

    async def replace_rejected(
        self, signed: Snapshot, timeout: float | None = None
    ) -> Outcome | None:
        """
        Return a newer snapshot, to replay a request whose token was rejected.

        Returns:
            `None` if the caller must accept the 401: the token cannot be renewed, or was brand-new.
        """
        state = self.state
        # Otherwise another caller has renewed the token already, and the newer one will do.
        if state.snapshot is signed:
            if state.must_accept_401(signed):
                return None
            seen = state.observe()
            failure = seen.failure
            # In a back-off, credentials are still tried, unless signing in failed. After a failure
            # of the store, everything is tried.
            if failure is not None and failure.in_backoff(seen.now):
                skips = isinstance(failure.error, StoreError)
                if not skips and (failure.signs_in or not state.has_credentials):
                    return state.no_token_error(seen, failure.error)
            outcome = await self.renew(signed, timeout, Urgency.REJECTED)
            if isinstance(outcome, KoyebSessionError):
                return state.no_token_error(state.observe(), outcome)
        return state.usable

    # The one renewal

    async def renew(
        self,
        old: Snapshot | None,
        timeout: float | None = None,
        urgency: Urgency = Urgency.REQUESTED,
    ) -> Outcome:
        """
        Start or join the renewal that replaces ``old``, unless it is replaced already.

        Args:
            old: The snapshot that the caller has seen.
            timeout: Seconds to wait; `None`: the client's timeout. The renewal itself goes on.
            urgency: How urgently the caller needs it.
        """
        state = self.state
        if old is None and state.signed_out and urgency < Urgency.REQUESTED:
            return NotSignedInError("signed out: call login()")
        if refusal := self._refusal():
            return refusal
        deadline = Deadline(self._timeout if timeout is None else timeout)
        failed, generation, attempt = None, state.generation, 1
        # A sign-in or sign-out ends the loop, as it has replaced `old` without a renewal.
        while generation == state.generation:
            # The task has at least the client's timeout, as callers with more time may join it.
            task = self._join_or_start(
                old, generation, max(deadline.seconds, self._timeout), urgency
            )
            if task is None:
                break
            outcome = await task.join(deadline.left())
            if outcome is None and state.snapshot is not old:
                break  # the new token is there; the task is only saving it
            if outcome is None and task.alive:
                # This caller's time is over. The task goes on for the others.
                return failed or renewal_timed_out(deadline.seconds)
            if outcome is None:
                return TransportError("the renewal was cut off: its event loop or thread ended")
            # A less urgent renewal may give up on the store where this caller would go on.
            gave_up = isinstance(outcome, StoreError) and task.urgency < urgency
            # A task for an earlier snapshot may still be running, for example to save its token.
            # Its outcome says nothing about `old`, so the loop starts again.
            if task.replaces is old and not gave_up:
                if not await self._wait_to_retry(outcome, attempt, urgency, deadline):
                    return outcome
                attempt += 1
            failed = outcome if isinstance(outcome, KoyebSessionError) else None
        return state.snapshot or SUPERSEDED

    def _refusal(self) -> KoyebSessionError | None:
        """Tell why the calling thread or task must not wait for a renewal; `None`: it may."""
        return cannot_wait("try again") if is_in_step() else self._renewal.refusal()

    async def _wait_to_retry(
        self, outcome: Outcome, attempt: int, urgency: Urgency, deadline: Deadline
    ) -> bool:
        """
        Wait until callers that need a token may try again; `False` if they should not.

        The caller waits, not the shared task: that one holds the store's lock, and callers of a
        newer session may be waiting for it.
        """
        if self._retry_at is None or self._retry_at[0] is not outcome:
            return False
        if urgency < Urgency.REJECTED and self.state.usable is not None:
            return False
        wait = self._retry_at[1] - time.monotonic()
        if attempt >= self._retry.attempts or wait >= deadline.left():
            return False
        await async_sleep(max(wait, 0.0))
        return True

    def _join_or_start(
        self, old: Snapshot | None, generation: int, seconds: float, urgency: Urgency
    ) -> _SharedRenewal | None:
        """
        Join the current renewal, or start one.

        It starts outside the lock: where no thread can be started, that runs the work right here.

        Returns:
            `None` when the session has moved on from ``old``. Reusing an exchanged token trips the
            service's reuse detection and ends the whole session. So does beginning one in the midst
            of beginning another, as a signal handler may: it is `None` there, too.
        """
        if is_in_step():
            return None
        # One step under the lock: of two threads that see no task, only one makes it.
        with state_lock:
            if self.state.snapshot is not old:
                return None
            task = self._task
            if task is not None and task.alive and task.generation == generation:
                return task
            renew = partial(self._run_renewal, old, generation, urgency, seconds)
            self._task = task = _SharedRenewal(
                renew,
                self._tell_listeners,
                replaces=old,
                seconds=seconds * self._source.patience,
                active_tasks=self._active_tasks,
            )
            task.generation, task.urgency = generation, urgency
        task.start()
        return task

    async def _run_renewal(
        self, old: Snapshot | None, generation: int, urgency: Urgency, seconds: float
    ) -> Outcome:
        """
        Do the work of the shared task; return a failure as a value.

        The session may change whenever this task waits. So the result is based on the session at
        the end: if it has a new token then, the callers get that token rather than an error.
        """
        if generation != self.state.generation or self.state.snapshot is not old:
            return self.state.snapshot or SUPERSEDED  # the thread started too late
        raised: Exception | None = None
        # The task's own limit: neither the deadline nor a cancellation of a caller reaches it.
        try:
            with async_time_limit(seconds * self._source.patience):
                outcome = await self._renewal.run(old, generation, urgency, Deadline(seconds))
        except TimeoutError:
            outcome = FailedAttempt(renewal_timed_out(seconds))
        except Exception as exc:  # noqa: BLE001 - the user's clock, transport or event hook
            raised = exc
            text = f"the token was not renewed: {type(exc).__name__}"
            outcome = FailedAttempt(with_cause(TransportError(text), safe_copy(exc)))
        held = self.state.snapshot
        if isinstance(outcome, Snapshot) or generation != self.state.generation:
            return held or SUPERSEDED
        if held is not None and held is not old:
            return held  # the renewal succeeded; saving the token then failed or took too long
        self._record_failure(outcome, generation, urgency)
        # The user's own exception is of interest only to callers that get no token.
        if raised is not None and self.state.usable is None:
            raise raised
        return outcome.error

    def _record_failure(self, failed: FailedAttempt, generation: int, urgency: Urgency) -> None:
        """Record a failure, and when the waiting callers may try again."""
        before = self.state.failure
        attempt = 1 if before is None else min(before.failures + 1, self._retry.attempts)
        chance = random.random()  # noqa: S311 - spreads load
        wait = self._retry.wait(failed.error, attempt, chance)
        self._retry_at = None if wait is None else (failed.error, time.monotonic() + wait)
        is_waited_for = urgency >= Urgency.REJECTED or self.state.usable is None
        self.state.record_failure(failed, generation, again=is_waited_for and wait is not None)

    # Signing in and out

    async def begin_session(
        self,
        new_token: NewToken,
        generation: int | None,
        deadline: Deadline,
        account: str | None = None,
        *,
        bound: bool = False,
    ) -> Outcome:
        """
        Begin a session with a token.

        The token is committed first, and its save comes after it: a store that fails costs no
        session.

        Args:
            new_token: The token.
            generation: See `SessionState.commit`.
            deadline: The limit for saving the token.
            account: The account of the session; `None`: the same account as before.
            bound: See `AsyncPersistence.bound`.
        """
        if refusal := self._renewal.refusal():
            return refusal
        persistence = self._persistence
        unsaved = persistence is not None
        if persistence is not None:
            persistence.mark_unsaved()  # before it: a signal handler may raise after the commit
        outcome = self.state.commit(new_token, generation, begins=True, unsaved=unsaved)
        if isinstance(outcome, KoyebSessionError):
            # The session changed while the token was on its way, so nobody will use the token.
            if outcome is SUPERSEDED and new_token.just_issued:
                await self._source.revoke(new_token.token, deadline)
            return outcome
        self.state.log_new_token(new_token, outcome)
        if persistence is not None:
            if account is not None:
                persistence.begin(account, bound=bound)
            persistence.mark_unsaved()
        # In a shared task: a cancelled caller must not leave the old token in the store.
        if self.listeners or unsaved:
            await self._after_change(partial(self._synchronize, deadline), deadline).run()
        return outcome

    async def sign_out(self, timeout: float | None = None) -> KoyebSessionError | None:
        """
        End the session: in memory at once, then in the store and at the service.

        If one of these fails, the others are done nevertheless.
        """
        if refusal := self._renewal.refusal():
            return refusal
        deadline = Deadline(self._timeout if timeout is None else timeout)
        left: list[Any] = []
        # The task does all of it: a signal handler may raise between any two steps of the caller.
        leave = partial(self._end_session, left, deadline)
        clear = partial(self._clear_unless_replaced, self.state.generation, left)
        task = self._after_change(leave, deadline, clear)
        problem = await task.run()
        if task.succeeded:
            return problem
        if not task.alive:  # its thread started too late, or its event loop ended
            clear()
        return cannot_wait("logout: it goes on") if is_in_step() else not_signed_out(deadline)

    def _clear_unless_replaced(self, generation: int, left: list[Any]) -> None:
        """
        Sign out in memory, and put into ``left`` the input of the rest.

        If a signal handler has kept the task from starting, `aclose` or the interpreter's end
        starts it. A session that has begun since is not the one to end.
        """
        with state_lock:
            if generation == self.state.generation or self.state.signed_out:
                left.extend((self._task, self._clear()))

    def _clear(self) -> Snapshot | None:
        """Sign out in memory, and return the snapshot before."""
        if self._persistence is not None:
            self._persistence.mark_unsaved()
        # From here on, no renewal that began before can commit its token.
        old = self.state.clear()
        if self._persistence is not None:
            self._persistence.mark_unsaved()
        return old

    def _after_change(
        self, work: Callable[[], Any], deadline: Deadline, first: Callable[[], Any] | None = None
    ) -> AsyncSharedTask[KoyebSessionError | None]:
        """Make a task, which no caller's cancellation stops, for ``work`` and the listeners."""
        return AsyncSharedTask(
            work,
            self._tell_listeners,
            first=first,
            seconds=deadline.left(),
            active_tasks=self._active_tasks,
        )

    async def _synchronize(self, deadline: Deadline) -> KoyebSessionError | None:
        return None if self._persistence is None else await self._persistence.synchronize(deadline)

    async def _end_session(self, left: list[Any], deadline: Deadline) -> KoyebSessionError | None:
        if not left:  # another session has begun
            return None
        task, old = left
        problem: KoyebSessionError | None = None
        forgotten: KoyebSessionError | None = None
        try:
            with async_time_limit(deadline.left()):
                # The store first: a service that hangs must not keep it from being emptied.
                found = None
                if self._persistence is not None:
                    half = Deadline(deadline.left() / 2)
                    found, forgotten = await self._persistence.sign_out(old, half)
                if found is not None:
                    problem = await self._source.revoke(found, deadline)
                if old is not None and old.phase(self.state.clock) is not Phase.EXPIRED:
                    problem = await self._source.revoke(old.token, deadline) or problem
                # A renewal that is running finds the session ended, and revokes its new token.
                if task is not None and task.alive:
                    await task.wait_done(deadline.left())
        except TimeoutError:
            problem = problem or not_signed_out(deadline)
        if old is not None or problem is not None:
            at_service = "" if problem is None else f"; at the service: {problem}"
            name = None if problem is None else type(problem).__name__
            log.info("signed out%s", at_service, extra=fields("signed_out", error=name))
        if problem is not None and forgotten is not None:
            log.warning("the token may still be in the store: %s", forgotten)
        return problem or forgotten

    # Life cycle

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
        wakeup = AsyncWakeup()
        # Replaced as a whole, since `wake` reads the tuple without the lock.
        with state_lock:
            self._wakeups = (*self._wakeups, wakeup)
        self.state.on_change = self._changed
        try:
            while running():
                try:
                    await self.usable_snapshot(wait_for_renewal=True)
                except Exception:  # noqa: BLE001 - the user's transport or clock
                    log.exception("keep_current() goes on after an error that is not Koyeb's")
                if (late := self._pending_save()) is not None:
                    await late.run()
                await wakeup.sleep(self.state.seconds_to_next_check)
        finally:
            with state_lock:
                self._wakeups = tuple(other for other in self._wakeups if other is not wakeup)

    async def drain(self) -> None:
        """
        Wait for running tasks, each within its own limit, and save an unsaved token.

        The renewal comes first, as it may leave a token to save and a change to report.
        """
        if self._task is not None and self._task.alive:
            await self._task.wait()
        if self._persistence is not None:
            await self._persistence.drain(self._timeout)
        if self.listeners is not None:
            await self.listeners.drain(self._timeout)
        self.wake()

    def _pending_save(self) -> AsyncSharedTask[StoreError | None] | None:
        """Return an unstarted task that saves an unsaved change; `None` if there is none."""
        persistence = self._persistence
        if persistence is None or not persistence.has_unsaved:
            return None
        return persistence.synchronize_later()

    def wake(self) -> None:
        """Make each `renew_ahead_of_need` check again."""
        for wakeup in self._wakeups:
            wakeup.set()

    def _changed(self, token: Token | None) -> None:
        """Queue a change for the listeners; called while the state lock is held."""
        if self.listeners is not None:
            self.listeners.post(token)
        self.wake()

    async def _tell_listeners(self) -> None:
        if self.listeners is not None:
            await self.listeners.tell()


class _SharedRenewal(AsyncSharedTask[Outcome]):
    """A renewal in progress, with the session's generation and the urgency at its start."""

    generation: int = 0
    urgency: Urgency = Urgency.AHEAD
