"""Thin, reproducible scripts over poejax; each is also importable."""
