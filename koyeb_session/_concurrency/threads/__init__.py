"""The blocking twins, for threads: the same names without ``async_``."""
