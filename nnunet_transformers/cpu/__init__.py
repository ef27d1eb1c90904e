"""Kernels and memory allocation for training and prediction on CPU."""
