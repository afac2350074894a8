"""LAMBADA: how well a target predicts the last word of a passage, and how two targets differ in it."""
