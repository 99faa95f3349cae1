from pathlib import Path

from aqtopo.refusal import Retry
from aqtopo.run_directory.batch_job import JOB_DIR, BatchJob


def test_outside_of_a_job_nothing_is_asked_or_written(tmp_path: Path) -> None:
    job = BatchJob.from_environment({})
    job.request_restart("why")
    job.note_failure(Retry.NEVER, 2, "why")
    job.note_save("tag", tmp_path)
    assert not job.stop_requested
    assert job.facts == {}
    assert not job.has_saved_in(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_script_and_the_ranks_talk_through_files(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    assert job.facts == {"job": "7", "restart_count": "2"}
    assert not job.stop_requested
    (tmp_path / "stop").touch()
    assert job.stop_requested
    job.request_restart("saved at step 3")
    job.note_save("epoch00-step000003", tmp_path / "run")
    assert (tmp_path / "again").read_text() == "saved at step 3\n"
    assert (tmp_path / "saved").read_text() == "epoch00-step000003\n"


def test_later_starts_of_a_job_that_has_saved_go_on_from_there(tmp_path: Path) -> None:
    first = BatchJob.from_environment({JOB_DIR: str(tmp_path)})
    again = BatchJob.from_environment({JOB_DIR: str(tmp_path), "SLURM_RESTART_COUNT": "1"})
    assert not again.has_saved_in(tmp_path / "run")
    first.note_save("epoch00-step000003", tmp_path / "run")
    assert again.has_saved_in(tmp_path / "run")
    assert not again.has_saved_in(tmp_path / "other")
    assert not first.has_saved_in(tmp_path / "run")  # it was asked for what its command line says


def test_a_reason_that_cannot_be_written_does_not_take_the_failure_s_place(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path / "removed")})
    job.note_failure(Retry.PERHAPS, 1, "no space left on the device")
    assert not list(tmp_path.iterdir())


def test_the_first_rank_to_fail_is_heard_and_one_that_may_never_start_again_beside_it(tmp_path: Path) -> None:
    job = BatchJob.from_environment({JOB_DIR: str(tmp_path)})
    job.note_failure(Retry.PERHAPS, 1, "lost a rank")
    job.note_failure(Retry.NEVER, 3, "first")
    job.note_failure(Retry.NEVER, 2, "second")
    assert (tmp_path / "failed").read_text() == "1 lost a rank\n"
    assert (tmp_path / "never").read_text() == "3 first\n"
