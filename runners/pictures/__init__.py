"""Pictures and numbers of what one model reads."""
