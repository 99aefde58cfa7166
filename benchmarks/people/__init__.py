"""Simulated people: they label a store as real ones do, and agree as often as a published crowd did."""
