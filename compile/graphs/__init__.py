"""RWKV-7 as static-shape torch modules, written for the chip and independently of the reference.

Shapes: a call takes T tokens. Activations are ``[1, T, C]``, per-head ones ``[H, T, N]``, the WKV state ``[H, N, N]``
with values as rows and keys as columns.
"""
