"""What pages in a browser share: sessions, checks of what is sent, templates, styles."""
