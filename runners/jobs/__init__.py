"""Cells as jobs: in local processes or on SLURM, and what became of them."""
