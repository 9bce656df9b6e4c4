"""Dense tasks: segmentation, detection and instance segmentation: their data, and how a model is evaluated on them."""
