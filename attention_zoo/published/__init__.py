"""The published codes: their arguments and weights in terms of ours."""
