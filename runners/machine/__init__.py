"""Where a measurement ran, and what its failures are called."""
