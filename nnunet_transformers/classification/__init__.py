"""Classifiers of whole images, trained from an encoder checkpoint or from nothing.

``nnunet-transformers classify fit`` and ``nnunet-transformers classify predict`` are the way in.
"""
