"""The blocking twins: the same names without ``async_``, for threads."""
