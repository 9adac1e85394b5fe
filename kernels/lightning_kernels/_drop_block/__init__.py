"""DropBlock in two and three dimensions."""
