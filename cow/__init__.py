"""The copy-on-write engine of snapfs: synchronous, without FUSE, usable and testable on plain files."""
