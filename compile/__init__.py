"""Arrays to static graphs to ONNX to bmodel, through an isolated TPU-MLIR toolchain.

Import with ``from compile.x import y``: a bare ``import compile`` would shadow the builtin.
"""
