"""How a cell is planned, run, measured and recorded."""
