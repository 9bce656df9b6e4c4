"""How fast the mechanisms are, beside public peers and the least time that their products take."""
