"""Encoder checkpoints from unlabelled images."""
