"""What the FastAPI edge is made of: the caller's bearer, and the answers to errors."""
