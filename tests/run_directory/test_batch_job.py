from pathlib import Path

from aqtopo.refusal import Retry
from aqtopo.run_directory.batch_job import JOB_DIR, BatchJob


def test_all_methods_are_no_ops_outside_a_job(tmp_path: Path) -> None:
    job = BatchJob.from_environment({})
    job.request_restart("why")
    job.note_failure(Retry.NEVER, 2, "why")
    job.note_save("tag", tmp_path)
    assert not job.stop_requested
    assert job.facts == {}
    assert not job.has_saved_in(tmp_path)
    assert not list(tmp_path.iterdir())


def test_script_and_ranks_communicate_through_files(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    assert job.facts == {"job": "7", "restart_count": "2"}
    assert not job.stop_requested
    (tmp_path / "stop").touch()
    assert job.stop_requested
    job.request_restart("saved at step 3")
    job.note_save("epoch00-step000003", tmp_path / "run")
    assert (tmp_path / "again").read_text(encoding="utf-8") == "saved at step 3\n"
    assert (tmp_path / "saved").read_text(encoding="utf-8") == "epoch00-step000003\n"


def test_saved_run_directory_is_known_after_a_restart(tmp_path: Path) -> None:
    first = BatchJob.from_environment({JOB_DIR: str(tmp_path)})
    again = BatchJob.from_environment({JOB_DIR: str(tmp_path), "SLURM_RESTART_COUNT": "1"})
    assert not again.has_saved_in(tmp_path / "run")
    first.note_save("epoch00-step000003", tmp_path / "run")
    assert again.has_saved_in(tmp_path / "run")
    assert not again.has_saved_in(tmp_path / "other")
    assert not first.has_saved_in(tmp_path / "run")  # the first start follows its command line


def test_unwritable_failure_note_raises_no_error(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path / "removed")})
    job.note_failure(Retry.PERHAPS, 1, "no space left on the device")
    assert not list(tmp_path.iterdir())


def test_first_failure_of_each_kind_is_kept(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path)})
    job.note_failure(Retry.PERHAPS, 1, "lost a rank")
    job.note_failure(Retry.NEVER, 3, "first")
    job.note_failure(Retry.NEVER, 2, "second")
    assert (tmp_path / "failed").read_text(encoding="utf-8") == "1 lost a rank\n"
    assert (tmp_path / "never").read_text(encoding="utf-8") == "3 first\n"


def test_a_reason_with_half_a_surrogate_pair_is_written(tmp_path: Path) -> None:
    BatchJob.from_environment({JOB_DIR: str(tmp_path)}).note_failure(Retry.NEVER, 2, "x\ud800")
    assert (tmp_path / "never").read_bytes() == b"2 x\\ud800\n"
