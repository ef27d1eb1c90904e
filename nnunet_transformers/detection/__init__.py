"""Detectors of boxes in 2D images, YOLOv3's head on an encoder checkpoint or on random weights.

The commands are ``nnunet-transformers detect fit`` and ``nnunet-transformers detect predict``.
"""
