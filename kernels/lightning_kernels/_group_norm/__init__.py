"""Group and instance normalisation."""
