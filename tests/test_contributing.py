"""Check of the guided tours in CONTRIBUTING.md against the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOUR = re.compile(r"\*\*[^*]+\((\d+) files\)\.\*\*(.*?)(?:\n\n| The option)", re.DOTALL)


def test_the_tours_name_existing_files_and_their_number() -> None:
    tours = TOUR.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(tours) == 4
    known = [path.as_posix() for part in ("aqtopo", "kernels") for path in (ROOT / part).rglob("*.py")]
    for count, text in tours:
        names = set(re.findall(r"`([\w/]+\.py)`", text))
        assert not [name for name in names if not any(path.endswith(f"/{name}") for path in known)]
        assert len(names) == int(count)
