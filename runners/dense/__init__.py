"""Dense tasks: semantic segmentation, detection and instance segmentation."""
