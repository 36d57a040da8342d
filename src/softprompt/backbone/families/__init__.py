"""Model families whose attention does not use transformers' interface, one module each."""
