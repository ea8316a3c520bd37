"""Measurements side by side, each a command."""
