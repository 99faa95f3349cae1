"""`aqtopo slurm init`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from aqtopo.cli.slurm import DEFAULT_SITE
from aqtopo.shipped import shipped_folder

SOURCE = shipped_folder("slurm")
SITES = sorted(path.stem for path in (SOURCE / "sites").glob("*.sh"))


@pytest.mark.parametrize("site", SITES)
def test_init_copies_all_scripts_with_the_site_as_default(aqtopo: Any, tmp_path: Path, site: str) -> None:
    assert aqtopo("slurm", "init", "--site", site, "--out", tmp_path).code == 0
    for path in (path for path in SOURCE.rglob("*") if path.is_file()):
        written = tmp_path / "slurm" / path.relative_to(SOURCE)
        expected = path.read_text(encoding="utf-8").replace(DEFAULT_SITE, f"${{AQTOPO_SITE:-{site}}}")
        assert written.read_text(encoding="utf-8") == expected
        assert written.stat().st_mode == path.stat().st_mode
    chosen = ["bash", "-c", "unset AQTOPO_SITE; source slurm/site.sh; echo $AQTOPO_SITE"]
    ended = subprocess.run(chosen, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{site}\n"


def test_init_replaces_nothing(aqtopo: Any, tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    ended = aqtopo("slurm", "init", "--site", SITES[0], "--out", tmp_path)
    assert "exists already" in ended.complaint
    assert not any((tmp_path / "slurm").iterdir())


def test_an_unknown_site_is_refused_with_the_known_ones(aqtopo: Any, tmp_path: Path) -> None:
    ended = aqtopo("slurm", "init", "--site", "moon", "--out", tmp_path)
    assert f"Choose {', '.join(SITES)}." in ended.complaint
    assert not (tmp_path / "slurm").exists()
