"""Benchmarks: the package beside what people would use instead. ``make bench`` runs them all."""
