"""The receipt of a toolchain that is not there."""

from compile.toolchain import Receipt


def a_receipt(version: str = "1.30.2") -> Receipt:
    """What an install of *version* would have left."""
    return Receipt(
        version=version,
        wheel_sha256="ab" * 32,
        compiler_commit=f"v{version}-g0",
        pins=(),
        bundled_glibc=None,
        host_glibc="2.36",
        glibc_moved=(),
        installed_at="now",
    )
