"""The pretraining methods, a file each."""
