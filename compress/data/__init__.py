"""Code into units, units into examples with known truth."""
