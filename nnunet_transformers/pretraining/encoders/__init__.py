"""Encoders of the pretraining methods: images, masked images, slices and radiology reports."""
