"""Encoder checkpoints from unlabelled images: prepared data, methods on Lightning, recipes.

``nnunet-transformers pretrain prepare`` and ``nnunet-transformers pretrain fit`` are the way in.
"""
