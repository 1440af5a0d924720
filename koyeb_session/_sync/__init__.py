# Generated from koyeb_session/_async/__init__.py by .ci/generate_sync.py: edit that, not this.

"""The asynchronous half, written by hand; ``.ci/generate_sync.py`` makes the blocking one of it."""
