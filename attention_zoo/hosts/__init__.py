"""The pyramid around a token mixer."""
