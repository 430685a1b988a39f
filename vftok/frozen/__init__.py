"""Nets with other people's weights: text encoders, features, metrics."""
