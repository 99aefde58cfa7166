"""Answers that try to steer their judge: 60 of them, and how many change what a judge says."""
