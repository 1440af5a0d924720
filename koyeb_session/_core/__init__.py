"""Values and pure decisions: no I/O, no event loop, no thread."""
