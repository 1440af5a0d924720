"""Naive versions of the package, and the proof that the tests of the pitfalls tell each of them."""
