"""snapfs: a live and a frozen view of one disk image."""

__version__ = "0.1.0"
