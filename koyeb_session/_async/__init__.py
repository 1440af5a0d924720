"""One of the two halves; ``.ci/generate_sync.py`` generates ``_sync`` from ``_async``."""
