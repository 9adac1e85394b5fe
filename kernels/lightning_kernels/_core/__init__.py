"""What every kernel shares: which route a tensor takes, launches, operators, random words."""
