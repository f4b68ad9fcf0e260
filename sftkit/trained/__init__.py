"""Trained models: found, loaded, evaluated, merged and quantized."""
