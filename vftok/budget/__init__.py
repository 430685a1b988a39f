"""How many tokens each moment gets."""
