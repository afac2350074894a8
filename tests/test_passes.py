"""A release's passes, and what ``rwkv-tpu toolchain diff`` tells of two releases."""

import sys

import msgspec
import pytest

from compile.passes import passes
from compile.toolchain import ToolchainError
from harness.cli import main
from tests.fake_toolchain import fake_toolchain


def described(default="false", **more):
    """What tablegen writes of one pass with one option."""
    option = {"!superclasses": ["Option"], "argument": "reuse_addr", "type": "bool", "description": "reuse memory"}
    known = {"!superclasses": ["PassBase", "Pass"], "argument": "address-assign", "summary": "assign addresses"}
    other = {"!superclasses": ["Pass"], "summary": "s", "options": []}
    return {
        "!instanceof": {},
        "AddressAssign": known | {"options": [{"def": "anonymous_1"}]},
        "anonymous_1": option | {"defaultValue": default},
    } | {name: other | {"argument": name} for name in more}


def release(folder, version, passes_json=None, options=""):
    """A toolchain that describes passes and has options."""
    toolchain = fake_toolchain(folder, version, options)
    if passes_json is not None:
        (toolchain.package / "passes_json").mkdir()
        (toolchain.package / "passes_json" / "Tpu.json").write_bytes(msgspec.json.encode(passes_json))
    return toolchain


def test_passes(tmp_path):
    """A pass and its options, each with its default; what else is in the file is none."""
    found = passes(release(tmp_path, "1", described()))
    assert list(found) == ["address-assign", "address-assign --reuse_addr".replace("--", "")]
    assert found["address-assign reuse_addr"].default == "false"
    assert found["address-assign"].help == "assign addresses"


def test_a_release_that_does_not_tell(tmp_path):
    """Without the folder, or with something else in it, it is said in words."""
    with pytest.raises(ToolchainError, match="1 describes no passes"):
        passes(release(tmp_path, "1"))
    with pytest.raises(ToolchainError, match="does not describe passes"):
        passes(release(tmp_path, "2", {"X": {"!superclasses": ["Pass"]}}))


def test_diff(tmp_path, monkeypatch, capsys):
    """Options, passes and defaults that changed; what one release does not tell is said, and the rest compared."""
    sides = {
        "1": release(tmp_path, "1", described(), 'parser.add_argument("--old_one")'),
        "2": release(tmp_path, "2", described("true", fresh=1), 'parser.add_argument("--new_one", default=7)'),
        "3": release(tmp_path, "3"),
    }
    monkeypatch.setattr("compile.toolchain.find", lambda version, _: sides[version])
    monkeypatch.setenv("COLUMNS", "160")

    def diff(*versions):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "toolchain", "diff", *versions])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    told = diff("1", "2")
    assert all(word in told for word in ("--old_one", "--new_one", "fresh", "address-assign reuse_addr"))
    assert "default changed" in told
    assert "passes cannot be compared" in diff("1", "3")


@pytest.mark.toolchain
def test_the_real_one(toolchain):
    """The installed release describes the passes that every compile goes through."""
    found = passes(toolchain)
    assert {"convert-top-to-tpu", "layer-group", "address-assign", "codegen"} <= found.keys()
    assert found["codegen model_file"].value == "std::string"
