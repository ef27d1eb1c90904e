"""Prepared images, and the data modules that draw the methods' samples from them."""

import lazy_loader

# at the first use, by __init__.pyi: Lightning takes seconds, which the processes that prepare images need not spend
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
