"""Declared studies: which cells are run, and why."""
