"""One quantity each: MACs, speed, memory, ceilings, accuracy; a module's docstring is its protocol."""
