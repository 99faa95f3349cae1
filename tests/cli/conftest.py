"""The command line, run in this process."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from aqtopo.cli.main import main


@dataclass(frozen=True)
class Ended:
    """Result of a command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Stderr on one line, after checking that it is a refusal: code 2, no result, no traceback."""
        assert self.code == 2
        assert self.out == ""
        assert "Traceback" not in self.err
        return " ".join(self.err.split())


Command = Callable[..., Ended]


@pytest.fixture
def aqtopo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `aqtopo` with arguments."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["aqtopo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run
