"""The containers of checkpoints: each reads and writes tensors in BlinkDL's names and orientation, dtypes untouched.

Nothing that is read here is trusted: files are mapped, never executed, and every size is checked before it is used.
"""
