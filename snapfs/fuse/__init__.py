"""The views as FUSE filesystems."""

# Before anything here loads pyfuse3.
from snapfs.fuse import more_operations as more_operations
