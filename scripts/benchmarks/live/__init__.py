"""Benchmarks of a running shop."""
