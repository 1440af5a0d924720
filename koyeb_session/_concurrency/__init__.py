"""
Everything that differs between the two halves, as twins.

``AsyncX`` or ``async_x`` is awaited, and lives in ``async_m``; ``X`` or ``x`` blocks, and lives in
``m``, which imports no event loop. Only ``places`` has both.

A *place* is where work lives: the running event loop, or the process since its last fork. What
belongs to another place than the current one is dead: it is neither awaited nor closed, only left.

Who owns what. A flight belongs to its place: to a task of the event loop that no caller's
cancellation reaches, or to a thread. :data:`places.atomic` is the only lock; it is held for a few
instructions, never across an await, a call to user code, or I/O.
"""
