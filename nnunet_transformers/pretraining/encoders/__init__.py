"""The encoders that pretraining methods train."""
