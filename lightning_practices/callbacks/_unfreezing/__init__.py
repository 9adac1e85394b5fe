"""Progressive unfreezing."""
