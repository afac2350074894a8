"""The subcommands of ``rwkv-tpu``, one file a subject."""
