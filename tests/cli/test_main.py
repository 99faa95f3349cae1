"""Options of `aqtopo` itself."""

import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

COMPLETE = "import sys; sys.argv = ['aqtopo']; from aqtopo.cli.main import main; main()"


def test_version_is_that_of_the_package(aqtopo: Any) -> None:
    ended = aqtopo("--version")
    assert (ended.code, ended.out) == (0, f"aqtopo {version('aqtopo')}\n")


@pytest.mark.parametrize(("words", "expected"), [("aqtopo co", "config"), ("aqtopo config in", "init")])
def test_commands_are_completed(words: str, expected: str) -> None:
    position = str(words.count(" "))
    environment = {"_AQTOPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
    ended = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [expected]


@pytest.mark.parametrize(
    ("setting", "spins"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "passive"}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_spin_count_of_openmp_unless_the_user_sets_it(setting: dict[str, str], spins: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "aqtopo", "plan", "ds_configs/demo_cpu.json"],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | setting,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in ended.stderr
