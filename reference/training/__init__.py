"""Training RWKV-7 in plain torch: small models that ship, users' own texts, and initial states."""
