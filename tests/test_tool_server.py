"""The compiler's tools, loaded once: a tool that fails or hangs is an answer, and the next call is served."""

import os

import pytest

from compile.tool_server import ToolServer, ToolServerError


@pytest.mark.toolchain
def test_failures_are_answers(toolchain, tmp_path):
    """A failing tool has a status and its words in the log, a hanging one is killed, and the server goes on."""
    log = tmp_path / "log"
    with ToolServer(toolchain) as server:
        failed = server.run("model_transform", ["--model_name", "x"], folder=tmp_path, log=log, timeout_s=60)
        assert failed.status == 2
        assert "required: --model_def" in log.read_text()
        hung = server.run("interpret", ["/dev/stdin", "in.npz", "out.npz"], folder=tmp_path, log=log, timeout_s=1e-3)
        assert hung.timed_out
        assert hung.status < 0
        again = server.run("model_transform", ["--help"], folder=tmp_path, log=log, timeout_s=60)
        assert again.status == 0
        os.kill(server._process.pid, 9)
        with pytest.raises(ToolServerError, match="ended with status -9"):
            server.run("model_transform", ["--help"], folder=tmp_path, log=log, timeout_s=60)
