"""Batch normalisation, alone or over the batches of several processes."""
