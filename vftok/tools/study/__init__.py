"""Studies: what was asked once, and how it was measured."""
