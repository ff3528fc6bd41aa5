"""Environments and the contract by which episodes are played in them."""
