"""Self-supervised pretraining of encoders: prepared data, methods on Lightning, losses, recipes.

``nnunet-transformers pretrain prepare`` prepares images and ``nnunet-transformers pretrain fit`` runs a recipe. A
method of one's own derives from ``EncoderPretraining``; the losses are plain functions and modules:

>>> from nnunet_transformers.pretraining import EncoderPretraining, cpa_loss, cta_loss, ita_loss, sinkhorn
"""

import lazy_loader

# at the first use, by __init__.pyi: Lightning takes seconds, which the processes that prepare images need not spend
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
