"""The TPU-MLIR release that is used where none is named."""

DEFAULT_RELEASE = "1.30.2"
