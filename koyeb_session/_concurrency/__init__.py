"""
Primitives that differ between the async and the blocking half, as pairs of twins.

``event_loop`` and ``threads`` have files of the same names. ``AsyncX`` and ``async_x`` are awaited,
``X`` and ``x`` block; no module of ``threads`` imports an event loop. ``runtime`` serves both.

Ownership: a shared task belongs either to an event loop or to a process. In an event loop it is a
task that no caller's cancellation reaches; in a process it is a daemon thread. A task is dead once
its event loop has ended, and so is a task of the parent of a fork. A dead task is neither awaited
nor closed, only dropped. :data:`runtime.state_lock` guards the shared state. It is held for a few
instructions, never across an await, user code, or I/O.
"""
