"""Other people's ports of RWKV-7: what a map says of their inputs and outputs, and nets that are read by it."""
