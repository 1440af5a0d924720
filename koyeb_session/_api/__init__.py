"""Koyeb's API as bytes: its operations, its messages, and their spelling on the wire."""
