"""How much labelers agree: with each other, with gold labels, and with a judge (docs/architecture.md)."""
