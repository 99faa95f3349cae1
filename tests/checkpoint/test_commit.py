"""The commit in the background: nothing has a name before every rank's files are on the disk and hashed."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqtopo.checkpoint import last_tag, list_tags, save
from aqtopo.checkpoint.files import FileRecord, describe_file
from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.save import HASH_FILES, PendingCommit
from aqtopo.checkpoint.tags import CHECKPOINTS, remove_stale

from .conftest import Ended, Job, run_jobs_in

Records = dict[str, FileRecord]


@dataclass
class Meeting:
    """Exchange of values between the threads of a test, each of which is a rank."""

    size: int
    told: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)


@dataclass(frozen=True)
class ThreadRank:
    """One thread as a rank."""

    rank: int
    meeting: Meeting

    @property
    def size(self) -> int:
        return self.meeting.size

    def barrier(self) -> None:
        self.meeting.barrier.wait(20)

    def gather_texts(self, text: str) -> list[str]:
        return self._gather(text)

    def gather_parts(self, part: Tensor) -> Tensor:
        return torch.cat(self._gather(part))

    def _gather(self, own: Any) -> list[Any]:
        self.barrier()
        self.meeting.told[self.rank] = own
        self.barrier()
        return [self.meeting.told[rank] for rank in range(self.size)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A file of each of three ranks."""
    paths = [tmp_path / "tag.tmp" / f"file{rank}" for rank in range(3)]
    paths[0].parent.mkdir()
    for rank, path in enumerate(paths):
        path.write_bytes(bytes([rank]) * 3_000_000)
    return paths


@pytest.fixture
def together() -> Iterator[Callable[..., list[BaseException | None]]]:
    """Call a function for each pending commit on a thread of its own; what each raised."""
    with ThreadPoolExecutor(3) as threads:
        yield lambda pending: [f.exception(20) for f in [threads.submit(p.finish) for p in pending]]


def begin(files: list[Path], publish: Callable[[Records], None], ranks: int = 3) -> list[PendingCommit]:
    meeting = Meeting(3)
    folder = files[0].parent
    return [PendingCommit(folder, [files[rank]], publish, ThreadRank(rank, meeting)) for rank in range(ranks)]


def test_hashes_of_all_ranks_are_published_and_hash_files_removed(
    files: list[Path], together: Callable[..., list[BaseException | None]]
) -> None:
    published: list[Records] = []
    seen: list[set[str]] = []

    def publish(records: Records) -> None:
        published.append(records)
        seen.append({path.name for path in files[0].parent.iterdir()})

    assert together(begin(files, publish)) == [None, None, None]
    assert published == [{path.name: describe_file(path) for path in files}]
    assert seen == [{path.name for path in files}]


def test_nothing_is_committed_before_the_last_rank_is_done(files: list[Path]) -> None:
    published: list[Records] = []
    pending = begin(files, published.append, ranks=2)  # the third never comes
    time.sleep(0.3)
    assert not published
    began = time.monotonic()
    pending[0].close(0.1)
    assert time.monotonic() - began < 10
    assert not published
    assert {path.name for path in files[0].parent.glob("hashes*")} == {
        "hashes-00000.json",
        "hashes-00001.json",
    }


@pytest.mark.parametrize("rank", [0, 2])
def test_rank_that_cannot_write_fails_the_save_on_all(
    files: list[Path], together: Callable[..., list[BaseException | None]], rank: int
) -> None:
    published: list[Records] = []
    files[rank].unlink()
    errors = together(begin(files, published.append))
    for error in errors:
        assert isinstance(error, OSError)
        assert f"tag could not be saved: rank {rank}: [Errno 2]" in str(error)
    assert not published
    assert not files[0].parent.exists()


def test_failed_part_is_known_without_waiting(files: list[Path]) -> None:
    files[1].unlink()
    pending = begin(files, lambda _: None)
    deadline = time.monotonic() + 20
    while not pending[1].failed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [part.failed for part in pending] == [False, True, False]
    pending[0].close(0)


def test_nothing_is_committed_after_close(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate, published = threading.Event(), list[Records]()

    def slow(path: Path, threads: int) -> FileRecord:
        gate.wait(20)
        return describe_file(path)

    monkeypatch.setattr(save, "sync_and_hash", slow)
    pending = PendingCommit(files[0].parent, files, published.append, ThreadRank(0, Meeting(1)))
    pending.close(0.01)  # the run's lock is released after this
    gate.set()
    deadline = time.monotonic() + 20
    while not pending.failed and not published and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pending.failed
    assert not published


def test_failure_to_publish_fails_the_save_on_all(
    files: list[Path], together: Callable[..., list[BaseException | None]]
) -> None:
    def full(_: Records) -> None:
        raise OSError(28, "No space left on device")

    for error in together(begin(files, full)):
        assert "rank 0: [Errno 28] No space left on device" in str(error)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    """Folders `killed0`, `killed1`: a rank killed in mid-commit; `signals`: signals all the time."""
    folder = tmp_path_factory.mktemp("disturbed")
    jobs = [
        Job(2, "kill_in_mid_commit", {"folder": str(folder / f"killed{rank}"), "rank": rank}, file="saving")
        for rank in range(2)
    ]
    jobs.append(Job(2, "save_under_signals", {"folder": str(folder / "signals")}, file="saving"))
    return folder, run_jobs_in(folder / "jobs", jobs)


@pytest.mark.slow
@pytest.mark.xdist_group("saved")
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_killed_in_mid_commit_leaves_the_states_before_it(
    disturbed: tuple[Path, list[Ended]], rank: int
) -> None:
    run_dir, ended = disturbed[0] / f"killed{rank}", disturbed[1][rank]
    assert ended.codes[rank] == -9, ended.output
    assert [tag.step for tag in list_tags(run_dir)] == [5]
    (unfinished,) = (run_dir / CHECKPOINTS).glob("*.tmp")
    assert (unfinished / f"hashes-{1 - rank:05d}.json").is_file()
    assert not (unfinished / f"hashes-{rank:05d}.json").is_file()
    remove_stale(run_dir)
    assert not unfinished.exists()
    verify_state(open_state(run_dir))


@pytest.mark.slow
@pytest.mark.xdist_group("saved")
def test_repeated_signals_during_a_save_change_nothing(disturbed: tuple[Path, list[Ended]]) -> None:
    run_dir, ended = disturbed[0] / "signals", disturbed[1][2]
    assert ended.codes == [0, 0], ended.output
    tag = last_tag(run_dir)
    assert tag is not None
    assert verify_state(open_state(tag.folder(run_dir))) > 40
    assert signals_of(ended) > 4


def signals_of(ended: Ended) -> int:
    return int(ended.text.rpartition("signals ")[2].split()[0])


def test_hash_files_are_not_hashed() -> None:
    assert Path("tag.tmp/hashes-00399.json").match(HASH_FILES)
    assert Path("tag.tmp/hashes-00000.json.part").match(HASH_FILES)
    assert not Path("tag.tmp/state.json").match(HASH_FILES)
