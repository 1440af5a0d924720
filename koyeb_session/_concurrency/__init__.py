"""
Everything that differs between the two halves, as twins.

``event_loop`` and ``threads`` have files of the same names. ``AsyncX`` and ``async_x`` are awaited,
``X`` and ``x`` block; no module of ``threads`` imports an event loop. ``runtime`` serves both.

Ownership: a shared task belongs to an event loop, as a task that no caller's cancellation reaches,
or to a process, as a daemon thread. A task of an event loop that has ended, or of the parent of a
fork, is dead: it is neither awaited nor closed, only dropped. :data:`runtime.state_lock` is the
only lock. It is held for a few instructions, never across an await, user code, or I/O.
"""
