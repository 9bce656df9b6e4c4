"""Rows of the table: selected, ranked, with intervals."""
