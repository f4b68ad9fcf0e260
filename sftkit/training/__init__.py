"""The training step and its loop, on `transformers.Trainer`."""
