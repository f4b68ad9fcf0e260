"""From sources to packed examples."""
