"""What several callbacks ask of a Trainer."""
