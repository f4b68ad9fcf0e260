"""A run, from a configuration to a saved model."""
