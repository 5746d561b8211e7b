"""Batches of patches from shards."""
