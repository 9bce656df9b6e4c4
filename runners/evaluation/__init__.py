"""Accuracy of a model with its weights on images with known classes."""
