"""Sweeps: what a folder of jobs has found, as a table over seeds, files and learning curves."""
