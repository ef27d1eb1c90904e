"""Weights on the Hugging Face hub: addresses, the choice among a repository's files, and the download."""

from .address import PREFIX, Address
from .fetch import Fetched, fetch, unreachable

__all__ = ["PREFIX", "Address", "Fetched", "fetch", "unreachable"]
