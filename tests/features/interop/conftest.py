"""The command run in this process."""

import sys

import pytest

from features.interop.cli import main


@pytest.fixture
def convert(monkeypatch):
    """convert(IN, "--to", …) -> exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert-features", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run
