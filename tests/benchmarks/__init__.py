"""What the package costs, beside bare httpx and what else one would use: ``nox -s bench``."""
