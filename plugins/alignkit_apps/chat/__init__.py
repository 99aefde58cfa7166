"""People talk to policies, in the terminal and on a page (docs/architecture.md)."""
