"""Values and pure decisions, without I/O, event loops or threads."""
