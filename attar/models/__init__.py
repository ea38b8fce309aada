"""Models and tokenizers of `transformers`: loading, structure, heads, fingerprints."""
