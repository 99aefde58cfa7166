"""What plugins implement, and what they may read. It imports nothing of what finds, calls or runs
them. Design: docs/architecture.md.
"""
