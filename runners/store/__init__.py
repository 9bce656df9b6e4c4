"""The results folder: cells, records, leases, columns."""
