"""Installing, proving, finding and checking toolchains: real pip and real environments, small stand-in wheels."""

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile import install as installer
from compile.install import install
from compile.python310 import Python310Error, find_python310
from compile.toolchain import HalfMade, Toolchain, ToolchainError, check, find, host_glibc, installed, look_up

VERSION = "9.9.9"
REPOSITORY = Path(__file__).parent.parent

# Stand-ins for the release's tools: they make the files that the real ones make.
TRANSFORM = """
import sys
open(sys.argv[sys.argv.index("--mlir") + 1], "w").write("module")
"""
DEPLOY = """
import sys
open(sys.argv[sys.argv.index("--model") + 1], "w").write("bmodel")
open("compiler_profile_0.txt", "w").write("total_cycle:1")
"""
ONNX = """
class Anything:
    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

TensorProto = helper = Anything()

def save(model, path):
    open(path, "w").write("onnx")
"""

# Installs VERSION in a process of its own; at the proof it waits for a line of input.
INSTALLER = """
import sys
from pathlib import Path
from compile import install as installer

python, cache, *pip_args = sys.argv[1:]
installer.find_python310 = lambda: Path(python)
installer._NEEDED_BYTES = 0

def say(line):
    print(line, flush=True)
    if "proving" in line:
        sys.stdin.readline()

print("root", installer.install("9.9.9", Path(cache), say=say, pip_args=pip_args).root, flush=True)
"""


Start = Callable[..., subprocess.Popen[str]]  # options for pip to a running installer


def release(deploy: str = DEPLOY, glibc: str = "0.1") -> dict[str, str]:
    """The files of a release of tpu_mlir that brings along a glibc."""
    libraries = dict.fromkeys(("libm.so.6", "libpthread.so.0", "libz.so.1"), "library")
    libraries["libc.so.6"] = f"\0GNU C Library (Ubuntu GLIBC {glibc}-0ubuntu3.9) stable release version {glibc}.\n"
    return {f"tpu_mlir/lib/third_party/{name}": content for name, content in libraries.items()} | {
        "tpu_mlir/__init__.py": "",
        "tpu_mlir/bin/model_tool": "#!/bin/sh\n",
        "tpu_mlir/python/tools/model_transform.py": TRANSFORM,
        "tpu_mlir/python/tools/model_deploy.py": deploy,
    }


def wheel(folder: Path, name: str, version: str, files: dict[str, str], *metadata: str) -> Path:
    """Write a wheel; *metadata* are more lines for its METADATA."""
    info = f"{name}-{version}.dist-info"
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
    files = files | {
        f"{info}/METADATA": "\n".join(head) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(content.encode())}")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        for path, content in files.items():
            opened.writestr(path, content)
        opened.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return archive


def tpu_mlir(folder: Path, version: str = VERSION, files: dict[str, str] | None = None) -> Path:
    """Write a wheel that declares what the real ones declare."""
    summary = f"Summary: Machine learning compiler for TPU v{version}-gecc9dd6-20260831"
    extra = ["Provides-Extra: onnx", 'Requires-Dist: onnx==1.14.1; extra == "onnx"']
    return wheel(folder, "tpu_mlir", version, files or release(), summary, *extra)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: all that an install of VERSION asks pip for."""
    folder = tmp_path_factory.mktemp("packages")
    tpu_mlir(folder)
    wheel(folder, "onnx", "1.14.1", {"onnx/__init__.py": ONNX})
    wheel(folder, "psutil", "7.2.2", {"psutil.py": ""})
    wheel(folder, "setuptools", "65.5.0", {"setuptools.py": ""})
    wheel(folder, "torch", "1.12.1", {"torch.py": ""})
    return folder


@pytest.fixture(scope="module")
def offline(packages: Path) -> list[str]:
    """Options that keep pip to that folder."""
    return ["--no-index", f"--find-links={packages}", "--no-cache-dir"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real CPython 3.10, but making environments by linking the files of one: ensurepip takes 3 s each time."""
    try:
        real = find_python310()
    except Python310Error as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("python")
    environment = folder / "environment"
    subprocess.run([real, "-I", "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin" / "python", "-I", "-m", "pip", "uninstall", "-qy", "setuptools"], check=True)
    fast = folder / "python3.10"
    fast.write_text(f'#!/bin/sh\n[ "$2 $3" = "-m venv" ] && exec cp -rl {environment} "$4"\nexec {real} "$@"\n')
    fast.chmod(0o755)
    return fast


@pytest.fixture(autouse=True)
def _plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's pip settings out."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def use_python(monkeypatch: pytest.MonkeyPatch, python: Path) -> None:
    """Let installs in this process use the quick interpreter, and the little room that stand-ins need."""
    monkeypatch.setattr(installer, "find_python310", lambda: python)
    monkeypatch.setattr(installer, "_NEEDED_BYTES", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, python: Path, offline: list[str]) -> tuple[Toolchain, list[str]]:
    """An installed toolchain, and what the install said. Not to be changed."""
    cache = tmp_path_factory.mktemp("cache")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installer, "find_python310", lambda: python)
        patch.setattr(installer, "_NEEDED_BYTES", 0)
        return install(VERSION, cache, say=said.append, pip_args=offline), said


@pytest.fixture
def copied(made: tuple[Toolchain, list[str]], tmp_path: Path) -> Toolchain:
    """A copy of the installed toolchain, free to be damaged."""
    root = tmp_path / "toolchains" / made[0].root.name
    shutil.copytree(made[0].root, root, symlinks=True, ignore=shutil.ignore_patterns("pip"))
    return replace(made[0], root=root)


def cache_of(toolchain: Toolchain) -> Path:
    """The cache folder that a toolchain is in."""
    return toolchain.root.parent.parent


def left_in(cache: Path) -> set[str]:
    """What an install left behind, without its log and its lock."""
    folder = cache / "toolchains"
    return (
        {path.name for path in folder.iterdir()} - {f"{VERSION}.log", f".{VERSION}.lock"} if folder.exists() else set()
    )


@pytest.fixture
def start(python: Path, tmp_path: Path) -> Iterator[Start]:
    """Start installers in processes of their own; what is left of them is killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(*pip_args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", INSTALLER, python, tmp_path, *pip_args],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def line_with(text: str, process: subprocess.Popen[str]) -> str:
    """Read what a process says up to the line that has *text*."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
        assert "proving" not in line, f"the installer is at its proof and waits for input without having said {text!r}"
    raise AssertionError(f"the installer ended without saying {text!r}")


def test_an_install_says_what_it_is(made: tuple[Toolchain, list[str]], packages: Path) -> None:
    """The receipt names the wheel by its hash, the compiler by its commit, and every package by its version."""
    toolchain, _ = made
    content = (packages / f"tpu_mlir-{VERSION}-py3-none-any.whl").read_bytes()
    assert toolchain.wheel_sha256 == hashlib.sha256(content).hexdigest()
    assert toolchain.compiler_commit == f"v{VERSION}-gecc9dd6-20260831"
    assert toolchain.pins == ("onnx==1.14.1", "psutil==7.2.2", "setuptools==65.5.0", "torch==1.12.1")


def test_an_install_tells_how_far_it_is(made: tuple[Toolchain, list[str]]) -> None:
    """Progress names the packages collected, their number, the proof and the place, with the seconds gone by."""
    toolchain, said = made
    assert any("Processing" in line and "torch-1.12.1" in line for line in said)
    assert any("Installing 5 packages" in line for line in said)
    assert said[-1].endswith(f"installed v{VERSION}-gecc9dd6-20260831 in {toolchain.root}")
    assert all(line.split()[1] == "s" and float(line.split()[0]) >= 0 for line in said)


def test_an_install_leaves_only_the_environment(made: tuple[Toolchain, list[str]]) -> None:
    """No scratch files stay, the log does, and the tools can be executed."""
    toolchain, _ = made
    assert left_in(cache_of(toolchain)) == {toolchain.root.name}
    assert not (toolchain.root / "scratch").exists()
    assert "Successfully installed" in (toolchain.root.parent / f"{VERSION}.log").read_text()
    assert all(
        os.access(toolchain.package / tool, os.X_OK) for tool in ("bin/model_tool", "python/tools/model_deploy.py")
    )


def test_a_strange_glibc_is_moved_aside(made: tuple[Toolchain, list[str]]) -> None:
    """A bundled glibc of another version than the host's is moved, all three files of it and no other."""
    toolchain, said = made
    third_party = toolchain.libraries / "third_party"
    assert toolchain.receipt.bundled_glibc == "0.1"
    assert toolchain.receipt.host_glibc == host_glibc()
    assert sorted(file.name for file in third_party.iterdir()) == ["libz.so.1", "moved-aside"]
    assert set(toolchain.receipt.glibc_moved) == {file.name for file in (third_party / "moved-aside").iterdir()}
    assert sum("aside: of glibc 0.1" in line for line in said) == 3


@pytest.mark.usefixtures("use_python")
def test_a_fitting_glibc_stays(tmp_path: Path, offline: list[str]) -> None:
    """A bundled glibc of the host's version stays where it is; a wheel given by path is the one installed."""
    given_wheel = tpu_mlir(tmp_path / "given", files=release(glibc=host_glibc()))
    toolchain = install(VERSION, tmp_path, wheel=given_wheel, say=lambda _: None, pip_args=offline)
    assert toolchain.receipt.glibc_moved == ()
    assert (toolchain.libraries / "third_party" / "libc.so.6").is_file()
    assert toolchain.wheel_sha256 == hashlib.sha256(given_wheel.read_bytes()).hexdigest()
    assert check(toolchain) == []


def test_what_is_proven_is_returned_at_once(made: tuple[Toolchain, list[str]]) -> None:
    """A second install of the same release does nothing and says nothing."""
    toolchain, _ = made
    said: list[str] = []
    again = install(VERSION, cache_of(toolchain), say=said.append, pip_args=["--no-such-option"])
    assert again == toolchain
    assert said == []


def test_another_wheel_of_an_installed_release_is_refused(made: tuple[Toolchain, list[str]], tmp_path: Path) -> None:
    """A wheel that differs from the installed one is not taken for it."""
    other = tpu_mlir(tmp_path, files=release(deploy="# other"))
    with pytest.raises(ToolchainError, match="from another wheel"):
        install(VERSION, cache_of(made[0]), wheel=other, say=lambda _: None)


def test_found_and_listed(made: tuple[Toolchain, list[str]]) -> None:
    """An installed release is found by its version, and is in the list."""
    toolchain, _ = made
    assert find(VERSION, cache_of(toolchain)) == toolchain
    assert installed(cache_of(toolchain)) == [toolchain]


def test_not_found_says_what_to_type(made: tuple[Toolchain, list[str]], tmp_path: Path) -> None:
    """A missing release is reported with those present and with the command that installs it."""
    with pytest.raises(ToolchainError, match=rf"(?s)there: {VERSION}\).*rwkv-tpu toolchain install 1\.30\.2"):
        find("1.30.2", cache_of(made[0]))
    with pytest.raises(ToolchainError, match="there: none"):
        find("1.30.2", tmp_path)


def test_half_made_ones_are_listed_as_such(copied: Toolchain) -> None:
    """A folder without a receipt, or with a broken one, is listed with the reason and never found."""
    (copied.root / "toolchain.json").write_text("{")
    (copied.root.parent / "1.2.0-beef").mkdir()
    (copied.root.parent / "10.1-beef").mkdir()
    listed = installed(cache_of(copied))
    assert [(type(one), one.version) for one in listed] == [
        (HalfMade, "1.2.0"),
        (HalfMade, VERSION),
        (HalfMade, "10.1"),
    ]
    assert "cannot be read" in listed[1].reason
    with pytest.raises(ToolchainError, match="not installed"):
        find(VERSION, cache_of(copied))


def test_a_sound_one_passes_its_check(made: tuple[Toolchain, list[str]]) -> None:
    """Nothing is wrong with a fresh install, moved files included."""
    assert check(made[0]) == []


def test_changed_and_missing_files_are_found(copied: Toolchain) -> None:
    """A file of the same size with other bytes, a missing one and a missing moved one are each reported."""
    (copied.package / "bin" / "model_tool").write_text("#!/bin/SH\n")
    (copied.libraries / "third_party" / "libz.so.1").unlink()
    moved = copied.libraries / "third_party" / "moved-aside" / "libm.so.6"
    moved.unlink()
    assert sorted(check(copied)) == sorted(
        [
            f"changed since its installation: {copied.package}/bin/model_tool",
            f"missing: {copied.libraries}/third_party/libz.so.1",
            f"missing: {moved}",
        ]
    )


@pytest.mark.parametrize(
    ("deploy", "reason"),
    [
        (f"{DEPLOY}print('no such chip'); raise SystemExit(3)", "exited with status 3.*no such chip"),
        ("import os; os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        (DEPLOY.replace("total_cycle:1", ""), "left no compiler_profile_0.txt"),
        (DEPLOY.replace("bmodel", ""), "left no tiny.bmodel"),
    ],
)
def test_a_compiler_that_fails_is_found_out(copied: Toolchain, deploy: str, reason: str) -> None:
    """A tool that fails, crashes or leaves an empty file fails the proof, with its last words."""
    (copied.package / "python" / "tools" / "model_deploy.py").write_text(deploy)
    changed, unproven = check(copied)
    assert changed.startswith("changed since")
    with pytest.raises(ToolchainError, match=f"(?s){reason}"):
        raise ToolchainError(unproven)


def test_a_host_with_a_new_glibc_is_noticed(made: tuple[Toolchain, list[str]]) -> None:
    """A toolchain that runs on its own glibc no longer fits once the host has another one."""
    receipt = msgspec.structs.replace(made[0].receipt, bundled_glibc="2.1", glibc_moved=())
    problems = check(replace(made[0], receipt=receipt))
    assert any("its own glibc 2.1, but the host now has" in problem for problem in problems)


def test_the_identity_follows_what_compiles(made: tuple[Toolchain, list[str]]) -> None:
    """Another wheel, another package or another glibc is another identity; another time or folder is not."""
    toolchain, _ = made

    def identity(**changes: object) -> str:
        return replace(toolchain, receipt=msgspec.structs.replace(toolchain.receipt, **changes)).identity

    others = {
        identity(wheel_sha256="0" * 64),
        identity(pins=("numpy==1.24.4", *toolchain.pins)),
        identity(pins=toolchain.pins[1:]),
        identity(glibc_moved=()),
        identity(glibc_moved=("libc.so.6",)),
    }
    assert len(others | {toolchain.identity}) == 6
    assert identity(installed_at="later") == toolchain.identity
    assert replace(toolchain, root=Path("/elsewhere")).identity == toolchain.identity


def test_the_environment_is_free_of_other_setups(
    made: tuple[Toolchain, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of other interpreters, linkers and compilers are gone; the rest, such as a proxy, stays."""
    foreign = ["PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "TPUC_ROOT", "TPUC_OPT_TIMEOUT", "CMODEL_GLOBAL_MEM_SIZE"]
    foreign += ["BMRUNTIME_ENABLE_PROFILE", "PPL_PROJECT_ROOT", "LGHASH_DIR"]
    for name in foreign:
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setenv("https_proxy", "kept")
    toolchain, _ = made
    environment = toolchain.environment()
    assert not set(foreign) & set(environment)
    assert environment["https_proxy"] == "kept"
    assert environment["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environment["PATH"].split(":") == [str(toolchain.root / "bin"), *os.environ["PATH"].split(":")]


def test_commands_start_the_tools_own_files(made: tuple[Toolchain, list[str]]) -> None:
    """Scripts run under the environment's interpreter and programs by themselves; an unknown tool is named."""
    toolchain, _ = made
    script = toolchain.package / "python" / "tools" / "model_deploy.py"
    runner = str(Path(installer.__file__).with_name("tool_runner.py"))
    assert toolchain.command("model_deploy") == [str(toolchain.python), runner, str(script)]
    assert toolchain.command("model_tool") == [str(toolchain.package / "bin" / "model_tool")]
    with pytest.raises(ToolchainError, match=r"no tool '\.\./x', only model_deploy, model_tool, model_transform"):
        toolchain.command("../x")


@given(version=st.one_of(st.text(), st.from_regex(r"[0-9]+\.[0-9.a-z/+*-]{0,6}", fullmatch=True)))
def test_only_versions_reach_paths_and_pip(version: str) -> None:
    """What is taken for a version starts with a digit and has no character that means something to a path or to pip."""
    try:
        look_up(version, Path("/nonexistent"))
    except ToolchainError as error:
        assert repr(version) in str(error)  # noqa: PT017 - the other way out of this try is the test
    else:
        assert version[0] in "0123456789"
        assert set(version) <= set("0123456789abcdefghijklmnopqrstuvwxyz.+")
        assert ".." not in version


@pytest.mark.parametrize("version", ["1.30.2", "1.6", "1.30.2rc1", "2.0.post1", "1.31.dev3", "1.30.2+local.1"])
def test_real_versions_are_versions(version: str) -> None:
    """Releases, previews and local builds are all accepted."""
    assert look_up(version, Path("/nonexistent")) is None


def test_a_wheel_of_another_release_is_refused(tmp_path: Path) -> None:
    """A wheel file has to be there, and to be of the release that is asked for."""
    with pytest.raises(ToolchainError, match="no wheel file"):
        install(VERSION, tmp_path, wheel=tmp_path / "absent.whl", say=lambda _: None)
    with pytest.raises(ToolchainError, match=rf"expected .*tpu_mlir-{VERSION}-….whl, but got tpu_mlir-1\.0-"):
        install(VERSION, tmp_path, wheel=tpu_mlir(tmp_path, "1.0"), say=lambda _: None)
    assert left_in(tmp_path) == set()


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little room nothing is begun, and the message says how much is needed and how much there is."""
    usage = namedtuple("usage", "free")  # noqa: PYI024 - the shape of what shutil returns
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=1_000_000_000))
    with pytest.raises(ToolchainError, match=r"needs 6\.5 GB, but .* has 1\.0 GB free"):
        install(VERSION, tmp_path, say=lambda _: None)
    assert left_in(tmp_path) == set()


def test_no_python_is_a_toolchain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a CPython 3.10 the error is a toolchain's, and it keeps the list of what was tried."""
    monkeypatch.setenv("RWKV_TPU_PYTHON310", "/nonexistent/python3.10")
    monkeypatch.setattr(installer, "_NEEDED_BYTES", 0)
    with pytest.raises(ToolchainError, match=r"(?s)cannot be installed .*RWKV_TPU_PYTHON310 should name"):
        install(VERSION, tmp_path, say=lambda _: None)
    assert left_in(tmp_path) == set()


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """A cache folder that is a file is an error with its name, not a traceback."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(ToolchainError, match=f"cannot be installed in {tmp_path}/cache/toolchains"):
        install(VERSION, tmp_path / "cache", say=lambda _: None)


@pytest.mark.usefixtures("use_python")
@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.0.1", rf"(?s)pip exited .*from versions: {VERSION}.*Choose one of the releases that pip lists"),
        ("9.9.8", r"(?s)pip exited .*The wheel is broken"),
        ("9.9.7", r"(?s)pip exited .*No matching distribution found for onnx==7"),
        ("9.9.6", r"(?s)does not compile a model of two operators.*no such chip"),
        ("9.9.5", r"(?s)does not compile a model of two operators.*No module named 'missing_part'"),
    ],
    ids=["unknown version", "broken wheel", "unknown dependency", "unproven", "does not import"],
)
def test_a_failed_install_leaves_nothing(tmp_path: Path, offline: list[str], version: str, expected: str) -> None:
    """Whichever step fails, there is one error with the last lines and a way out, a log, and no half-made folder."""
    wheels = {
        "0.0.1": lambda: None,
        "9.9.8": lambda: broken(tmp_path / "wheels"),
        "9.9.7": lambda: wheel(
            tmp_path / "wheels",
            "tpu_mlir",
            "9.9.7",
            release(),
            "Provides-Extra: onnx",
            'Requires-Dist: onnx==7; extra == "onnx"',
        ),
        "9.9.6": lambda: tpu_mlir(
            tmp_path / "wheels", "9.9.6", release(deploy="print('no such chip'); raise SystemExit(1)")
        ),
        "9.9.5": lambda: tpu_mlir(tmp_path / "wheels", "9.9.5", release(deploy="import missing_part")),
    }
    with pytest.raises(ToolchainError, match=expected):
        install(version, tmp_path, wheel=wheels[version](), say=lambda _: None, pip_args=offline)
    assert left_in(tmp_path) == {f"{version}.log", f".{version}.lock"}


def broken(folder: Path) -> Path:
    """A wheel file cut short, as by a download that broke off."""
    whole = tpu_mlir(folder, "9.9.8")
    whole.write_bytes(whole.read_bytes()[:500])
    return whole


@pytest.mark.usefixtures("use_python")
def test_a_dead_network_is_named(tmp_path: Path) -> None:
    """Where no package index answers, the error speaks of the network and not of versions."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(ToolchainError, match=r"(?s)pip exited .*The package index seems out of reach"):
            install(VERSION, tmp_path, say=lambda _: None, pip_args=[f"--index-url={url}", "--retries=0"])
    assert left_in(tmp_path) == set()


@pytest.mark.usefixtures("use_python")
@pytest.mark.parametrize("moment", ["making an environment", "torch-1.12.1", "proving"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, offline: list[str], moment: str) -> None:
    """Ctrl-C at any moment removes the half-made folder and goes on as Ctrl-C."""

    def say(line: str) -> None:
        if moment in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(VERSION, tmp_path, say=say, pip_args=offline)
    assert left_in(tmp_path) == set()


def test_a_second_installer_waits_and_finds_it_done(tmp_path: Path, offline: list[str], start: Start) -> None:
    """Of two installers at once, one does the work; the other says whom it waits for and gets the same toolchain."""
    first = start(*offline)
    line_with("proving", first)
    second = start(*offline)
    waiting = line_with("waiting", second)
    assert f"install of tpu_mlir {VERSION} by process {first.pid} on " in waiting
    answer, _ = first.communicate("go on\n", timeout=60)
    root = line_with("root", second)
    assert root in answer
    assert second.wait(60) == 0
    assert left_in(tmp_path) == {Path(root.split()[1]).name}


def test_a_killed_installer_is_cleaned_up_after(tmp_path: Path, offline: list[str], start: Start) -> None:
    """SIGKILL in the middle of pip ends pip too and frees the lock: whoever waits clears up and installs."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        first = start(f"--index-url=http://127.0.0.1:{index.getsockname()[1]}/", "--timeout=600", "--no-cache-dir")
        connection, _ = index.accept()  # pip asks, and never gets an answer
        with connection:
            connection.settimeout(20)  # seconds; left alone, pip would hold the connection for 600
            second = start(*offline)
            line_with("waiting", second)
            (leftover,) = installed(tmp_path)
            assert isinstance(leftover, HalfMade)

            first.kill()
            while connection.recv(4096):  # until the end of the connection: pip is gone
                pass
    assert str(leftover.root) in line_with("removing", second)
    line_with("proving", second)
    answer, _ = second.communicate("go on\n", timeout=60)
    assert answer.splitlines()[-1].startswith("root ")
    assert [one.version for one in installed(tmp_path) if isinstance(one, Toolchain)] == [VERSION]
    assert not leftover.root.exists()


@pytest.mark.toolchain
def test_the_real_one_is_sound(toolchain: Toolchain) -> None:
    """The real release compiles, its files are the wheel's, and the tools that the harness uses are there."""
    assert check(toolchain) == []
    assert toolchain.compiler_commit.startswith(f"v{toolchain.version}-g")
    info = subprocess.run(
        [*toolchain.command("model_tool"), "--help"], env=toolchain.environment(), capture_output=True, check=False
    )
    assert b"--info" in info.stdout + info.stderr
