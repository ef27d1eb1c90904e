"""A package for a network of one's own, to start from: ``nnunet-transformers new network NAME``.

``template/`` is such a package itself, of a network called ``my_network``; what is written is a copy under a new name.
"""

from .package import check_name, write_package

__all__ = ["check_name", "write_package"]
