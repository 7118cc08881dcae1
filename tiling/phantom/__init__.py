"""Synthetic slides, for demo, tests and benchmarks, which alone use it. May import jobs."""
