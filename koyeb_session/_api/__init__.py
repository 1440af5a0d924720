"""Koyeb's API as bytes: its operations, its messages, and their format on the wire."""
