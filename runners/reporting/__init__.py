"""The report and the table in other formats."""
