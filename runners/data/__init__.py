"""What a cell can be trained on."""
