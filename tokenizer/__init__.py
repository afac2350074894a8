"""The RWKV World tokenizer and the codecs that tie a checkpoint's ids to text."""
