"""Where this project keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Toolchains and bmodels: ``$RWKV_TPU_CACHE``, or the user's cache folder of this system."""
    return Path(os.environ.get("RWKV_TPU_CACHE") or platformdirs.user_cache_path("rwkv-tpu", appauthor=False))
