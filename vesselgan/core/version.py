"""The version, alone: what is written to disk names it, and imports nothing above itself for it."""

__version__ = "0.1.0"
