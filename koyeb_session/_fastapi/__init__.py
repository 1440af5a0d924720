"""The parts of the FastAPI edge: the caller's bearer, the mirror client, the error responses."""
