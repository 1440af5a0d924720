"""The asynchronous half, written by hand; ``.ci/generate_sync.py`` makes the blocking one of it."""
