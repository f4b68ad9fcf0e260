"""Models and tokenizers: loading, embeddings, quantized weights."""
