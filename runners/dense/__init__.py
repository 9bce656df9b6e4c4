"""The dense tasks: segmentation, detection and instance segmentation; their data, losses, scores and pictures."""
