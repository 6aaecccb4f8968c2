"""Training: `fit`, the rounds under it, and its callbacks."""
