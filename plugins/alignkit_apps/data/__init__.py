"""`alignkit data`: look at a file of rows, check it, clean it, and write it in another layout."""
