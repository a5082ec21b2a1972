"""The compactor's part: the one owner of segments."""
