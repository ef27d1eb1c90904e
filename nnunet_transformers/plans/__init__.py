"""Planners that nnU-Net finds by name (``-pl``): they configure transformers as nnU-Net configures CNNs."""
