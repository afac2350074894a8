"""RWKV-7 in plain torch: the oracle. It knows nothing of compilers or chips."""
