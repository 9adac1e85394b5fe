"""Layer and RMS normalisation: norms of rows."""
