"""The live server's part: the one writer of maps, new entries and the ring."""
