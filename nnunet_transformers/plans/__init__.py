"""Planners that nnU-Net finds by name (``-pl``): they plan transformers as nnU-Net plans CNNs."""
