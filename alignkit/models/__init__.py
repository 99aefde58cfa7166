"""Everything that runs a network without learning: loading, encoding, packing, forward passes, sampling."""
