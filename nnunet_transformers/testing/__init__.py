"""Checks that networks and pretraining methods of other packages can run on themselves."""
