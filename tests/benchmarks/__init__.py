"""The cost of the package, beside bare httpx and its alternatives: ``nox -s bench``."""
