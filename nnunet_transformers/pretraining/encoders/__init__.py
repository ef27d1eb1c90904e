"""Encoders of the pretraining methods: of images, masked images, slices and reports."""
