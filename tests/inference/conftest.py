from tests.hardly_optimized import hardly_optimized  # noqa: F401
