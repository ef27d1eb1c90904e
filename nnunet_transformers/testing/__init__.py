"""Checks that authors of networks and methods run on their own."""

from .network import NETWORK_CHECKS, PATCHES, check_network

__all__ = ["NETWORK_CHECKS", "PATCHES", "check_network"]
