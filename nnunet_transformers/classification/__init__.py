"""Classifiers of whole images, trained from an encoder checkpoint or from random weights.

The commands are ``nnunet-transformers classify fit`` and ``nnunet-transformers classify predict``.
"""
