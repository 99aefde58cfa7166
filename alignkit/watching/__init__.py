"""What samples say about reward hacking: drift, what the reward pays for, and gold (docs/architecture.md)."""
