"""RWKV-7's building blocks, each compiled alone, in the forms in which exporters write them."""
