"""One small adapter for each engine that takes tokens and gives logits and state."""
