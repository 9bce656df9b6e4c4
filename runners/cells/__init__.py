"""From axes to cells, from a cell to its model, its measures and its weights."""
