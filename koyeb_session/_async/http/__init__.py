"""Connections: who waits for one, and what is sent on it."""
