"""Groups, the one data object: what they are, how files are cut into rows, and how rows become groups."""
