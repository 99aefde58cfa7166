"""Honesty: rewards and a data format for questions without an answer, and the steps `sycophancy` and `calibration`."""
