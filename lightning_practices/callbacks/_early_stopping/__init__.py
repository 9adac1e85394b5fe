"""Early stopping, and training again for the steps it found."""
