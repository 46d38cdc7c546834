"""Benchmarks: each states its question and the limit it is held to, and appends its rows to results/."""
