"""A report of a compile in which all that a test does not name is empty."""

import msgspec

from harness.compile_report import CompileReport


def blank_report(**fields) -> CompileReport:
    """Fill what must be there: texts, lists and numbers."""
    texts = {"case", "checkpoint", "checkpoint_sha256", "toolchain", "bmodel", "bmodel_sha256", "undated_sha256"}
    lists = {"stages", "matrices", "wider"}
    blank = {
        one.name: "" if one.name in texts else () if one.name in lists else 0
        for one in msgspec.structs.fields(CompileReport)
        if one.required
    }
    return CompileReport(**blank | fields)
