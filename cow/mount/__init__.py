"""Before and after a mount: opening what was left behind, mending it, looking at it."""
