"""What is on disk, and how it is opened, read and stored into."""
