"""Skip steps whose gradients are not finite."""
