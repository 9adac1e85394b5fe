"""The blocks of a network, by depth."""
