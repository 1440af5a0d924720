"""The async half, written by hand; ``.ci/generate_sync.py`` generates the blocking half from it."""
