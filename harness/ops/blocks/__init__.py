"""The blocks: a file for each part of the model, with its formula in NumPy and its idioms in ONNX."""
