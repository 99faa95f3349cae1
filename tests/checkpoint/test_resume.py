"""`aqtopo train` resumed: at other world sizes, in mid-epoch, and refused with code 3 where it must be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint.files import exclusive_lock
from aqtopo.checkpoint.inspection import diff_states, open_state
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.checkpoint.tags import CHECKPOINTS, last_tag, list_tags, update_pointer
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.config import RunConfig, load_config
from aqtopo.distributed.launch import read_launch
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.refusal import RefusedError
from aqtopo.training.prepare import ResumeOptions, prepare, prepare_again
from tests.events import events

from .conftest import Ended, Job, run_jobs_in

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

TinyConfig = Callable[..., RunConfig]
WORLDS = (1, 2, 3)
STEPS, SAVED = 21, 5
"""The runs end 4 steps after STEPS: 20 after the state they are resumed from, and in the second epoch."""


def settings(ranks: int, run_dir: Path) -> dict[str, Any]:
    """A run of 6 samples a step, 16 steps an epoch, whatever the ranks."""
    return {
        "training": {"ranks_per_node": ranks, "epochs": 3, "validate_every": 8, "run_dir": str(run_dir)},
        "model": {"dropout": 0.1, "drop_path": 0.1},
        "schedule": {"interval": "step", "eta_min": 1e-6},
        "checkpoint": {"every_steps": SAVED, "keep_every_steps": SAVED},
        "deepspeed": {"train_micro_batch_size_per_gpu": 6 // ranks, "gradient_accumulation_steps": 1},
    }


IN_BF16 = load_config("ds_configs/lumi_400gpu_bf16.json").deepspeed.verbatim() | {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 3,
}
"""The `deepspeed` block of the configuration for clusters; 6 samples a step on two ranks."""


def losses(run_dir: Path) -> dict[int, float]:
    return {event["step"]: event["train_loss"] for event in events(run_dir, "step")}


@pytest.fixture(scope="session")
def crossed(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """Uninterrupted runs at each world size, and their step-5 tags resumed at each world size.

    Also a run of two ranks in bfloat16, resumed at two ranks and at one.
    """
    folder = tmp_path_factory.mktemp("resumed")
    base = json.loads(_base(tiny_store))
    jobs, stop = [], ["--stop-after", str(STEPS + 4)]
    trees = {str(world): (world, settings(world, folder / f"run{world}")) for world in WORLDS}
    trees["bf16"] = 2, settings(2, folder / "runbf16") | {"deepspeed": IN_BF16}
    for name, (world, changes) in trees.items():
        path = folder / f"{name}.json"
        path.write_text(RunConfig.model_validate(_merged(base, changes)).to_json(), encoding="utf-8")
        jobs.append(Job(world, "aqtopo", {"arguments": ["train", str(path), *stop]}))
    for before in trees:
        tag = folder / f"run{before}" / CHECKPOINTS / f"epoch00-step{SAVED:06d}"
        for after in WORLDS if before != "bf16" else (1, 2):
            run_dir = folder / f"run{before}to{after}"
            arguments = ["train", str(folder / f"{before}.json"), "--resume", str(tag), *stop]
            arguments += ["--set", f"training.run_dir={run_dir}"]
            jobs.append(Job(after, "aqtopo", {"arguments": arguments}))
    for job, ended in zip(jobs, run_jobs_in(folder / "jobs", jobs), strict=True):
        assert not any(ended.codes), (job, ended.output[-3000:])
    return folder


def _base(tiny_store: Path) -> str:
    return json.dumps(
        {
            "name": "tiny",
            "data": {
                "store": str(tiny_store),
                "grid": [8, 16],
                "forcings": ["insolation"],
                "weather_at_horizons": ["u", "rh"],
                "train_years": [2016],
                "validation_years": [2017],
                "test_years": [2018],
                "time_stride_hours": 6,
                "validation_stride_hours": 24,
                "workers": 0,
            },
            "model": {"dim": 32, "depth": 2, "heads": 2, "regions": [2, 2]},
            "optimizer": {"base_lr": 1e-3},
            "training": {"nodes": 1},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {key: {**base.get(key, {}), **value} for key, value in changes.items()}


@pytest.mark.parametrize("after", WORLDS)
@pytest.mark.parametrize("before", WORLDS)
def test_losses_after_a_mid_epoch_resume_equal_the_uninterrupted_runs(
    crossed: Path, before: int, after: int
) -> None:
    expected, found = losses(crossed / f"run{before}"), losses(crossed / f"run{before}to{after}")
    assert list(found) == list(range(SAVED + 1, STEPS + 5))
    expected = {step: expected[step] for step in found}
    assert found == (expected if before == after else pytest.approx(expected, rel=1e-5))
    if before == after:
        one, other = (last_tag(crossed / name) for name in (f"run{before}", f"run{before}to{after}"))
        assert one is not None
        assert other is not None
        assert replace(one, number=other.number) == other  # it has saved more states of its own
        states = [open_state(crossed / name) for name in (f"run{before}", f"run{before}to{after}")]
        assert not list(diff_states(*states))


def test_resume_in_bf16_has_the_same_bits_on_as_many_ranks(crossed: Path) -> None:
    expected, found = losses(crossed / "runbf16"), losses(crossed / "runbf16to2")
    assert found == {step: expected[step] for step in range(SAVED + 1, STEPS + 5)}
    assert not list(diff_states(*(open_state(crossed / name) for name in ("runbf16", "runbf16to2"))))
    assert expected != pytest.approx(losses(crossed / "run2"), rel=1e-5)  # it does compute in bfloat16


def test_resume_in_bf16_on_one_rank_gives_the_same_losses(crossed: Path) -> None:
    expected, found = losses(crossed / "runbf16"), losses(crossed / "runbf16to1")
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-5)


@pytest.mark.parametrize("after", WORLDS)
def test_verification_result_is_one_line(crossed: Path, after: int) -> None:
    (event,) = events(crossed / f"run2to{after}", "resume")
    assert (
        "resume verified: 43/43 parameters, 43/43 exp_avg, 43/43 exp_avg_sq, step 5, 4/4 groups"
        in event["line"]
    )
    assert f"world 2 -> {after}" in event["line"]
    saved, found = event["line"].partition("probe loss ")[2].split(", ")[0].rstrip(")").split(" (saved ")
    assert saved == found
    assert set(event["seconds"]) == {"convert", "load", "engine", "verify"}


@pytest.fixture(scope="session")
def refusals(crossed: Path) -> dict[str, Ended]:
    """Results of resuming copies of a two-rank run with changes or damage, one job each."""
    folder = crossed / "refusals"
    cases: dict[str, list[str]] = {
        "lr": ["--set", "optimizer.base_lr=0.002"],
        "lr allowed": ["--set", "optimizer.base_lr=0.002", "--allow-change", "optimizer.base_lr"],
        "clipping": ["--set", "deepspeed.gradient_clipping=0.5"],
        "bf16": ["--set", 'deepspeed.bf16={"enabled":true}'],
        "bf16 allowed": [
            "--set",
            'deepspeed.bf16={"enabled":true}',
            "--allow-change",
            "deepspeed.bf16.enabled",
        ],
        "seed": ["--set", "training.seed=7"],
        "seed allowed": ["--set", "training.seed=7", "--allow-change", "training.seed"],
        "damaged": [],
        "pointer": [],
        "auto": [],
        "already there": ["--stop-after", str(STEPS + 4)],
        "never": ["--resume", "never", "--set", "training.ranks_per_node=1"],
        "unknown tag": ["--resume", "epoch77"],
        "older tag": ["--resume", f"epoch00-step{SAVED:06d}"],
        "jump": ["--resume", f"epoch00-step{SAVED:06d}"],
    }
    jobs = []
    for name, arguments in cases.items():
        run_dir = folder / name.replace(" ", "_")
        shutil.copytree(crossed / "run2", run_dir)
        where = ["--set", f"training.run_dir={run_dir}", "--stop-after", str(STEPS + 6)]
        jobs.append(Job(1, "aqtopo", {"arguments": ["train", str(crossed / "2.json"), *where, *arguments]}))
    again = folder / "again"
    shutil.copytree(crossed / "run2", again)
    arguments = ["train", str(crossed / "2.json"), "--set", f"training.run_dir={again}", *cases["older tag"]]
    arguments += ["--rename", "gone=elsewhere", "--stop-after", str(STEPS + 6)]
    job = {"arguments": arguments, "job_dir": str(folder / "job"), "run_dir": str(again)}
    jobs.append(Job(1, "aqtopo_started_again", job))
    broken = ["--set", f"training.run_dir={folder / 'broken'}", "--set", 'checkpoint={"keep_best":1}']
    arguments = ["train", str(crossed / "2.json"), *broken]
    jobs.append(Job(2, "aqtopo_that_cannot_commit", {"arguments": arguments}, file="saving"))
    tag = last_tag(folder / "damaged")
    assert tag is not None
    shard = tag.folder(folder / "damaged") / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    expect_lower_losses(folder / "jump" / CHECKPOINTS / f"epoch00-step{SAVED:06d}")
    (folder / "pointer" / CHECKPOINTS / "latest").write_text("epoch00-step000099\n", encoding="utf-8")
    return dict(zip([*cases, "again", "broken"], run_jobs_in(folder / "jobs", jobs), strict=True))


def expect_lower_losses(tag: Path) -> None:
    """Make a saved state say that its training loss was a third lower than it was."""
    shutil.rmtree(universal_folder(tag).parent)
    manifest = read_manifest(tag)
    losses = manifest.run.losses.model_copy(update={"running": manifest.run.losses.running / 1.5})
    run = manifest.run.model_copy(update={"losses": losses})
    write_manifest(manifest.model_copy(update={"run": run}), tag)


def test_loss_that_jumps_in_20_steps_after_a_resume_is_reported(
    crossed: Path, refusals: dict[str, Ended]
) -> None:
    for run_dir, jumped in ((crossed / "run2to1", False), (crossed / "refusals" / "jump", True)):
        (event,) = events(run_dir, "loss_after_resume")
        assert (event["step"], event["jump"]) == (SAVED + 20, jumped), event
    assert "WARNING: it has jumped" in refusals["jump"].text
    assert refusals["jump"].codes == [0]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("lr", "optimizer.base_lr: saved 0.001, now 0.002"),
        ("clipping", "deepspeed.gradient_clipping: saved None, now 0.5"),
        ("bf16", "deepspeed.bf16.enabled: saved None, now True"),
        ("seed", "training.seed: saved 0, now 7"),
        ("seed allowed", "the next samples are"),
        ("damaged", "zero_pp_rank_1_mp_rank_00_optim_states.pt: bytes"),
        ("pointer", "names 'epoch00-step000099', which is not a complete saved state"),
    ],
)
def test_refused_resume_ends_with_code_3_and_writes_nothing(
    crossed: Path, refusals: dict[str, Ended], case: str, text: str
) -> None:
    ended = refusals[case]
    assert ended.codes == [3], ended.output
    assert text in ended.text
    assert "Traceback" not in ended.text
    run_dir = crossed / "refusals" / case.replace(" ", "_")
    for name in ("metrics.jsonl", "config.json", "run.json"):
        assert (run_dir / name).read_bytes() == (crossed / "run2" / name).read_bytes()
    assert [tag.name for tag in list_tags(run_dir)] == [tag.name for tag in list_tags(crossed / "run2")]


def test_allowed_change_is_applied_and_recorded(crossed: Path, refusals: dict[str, Ended]) -> None:
    assert refusals["lr allowed"].codes == [0], refusals["lr allowed"].output
    run_dir = crossed / "refusals" / "lr_allowed"
    assert json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["optimizer"]["base_lr"] == 0.002
    before, after = (events(path, "step")[-1]["lr"]["others"] for path in (crossed / "run2", run_dir))
    assert after > 1.4 * before


def test_probe_loss_that_an_allowed_change_affects_is_not_compared(
    crossed: Path, refusals: dict[str, Ended]
) -> None:
    assert refusals["bf16 allowed"].codes == [0], refusals["bf16 allowed"].output
    event = events(crossed / "refusals" / "bf16_allowed", "resume")[-1]
    assert ", not compared because of an allowed change), world 2 -> 1" in event["line"]


def test_auto_resumes_in_the_same_directory(crossed: Path, refusals: dict[str, Ended]) -> None:
    assert refusals["auto"].codes == [0], refusals["auto"].output
    run_dir = crossed / "refusals" / "auto"
    assert list(losses(run_dir)) == list(range(1, STEPS + 7))
    assert events(run_dir, "resume")[0]["step"] == STEPS + 4


def test_second_run_in_a_locked_directory_is_refused(crossed: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(crossed / "run2", tmp_path / "run"))
    (run_dir / ".lock").touch()
    where = ["--set", f"training.run_dir={run_dir}", "--stop-after", str(STEPS + 6)]
    before = sorted(run_dir.rglob("*"))
    with exclusive_lock(run_dir / ".lock"):
        job = Job(2, "aqtopo", {"arguments": ["train", str(crossed / "2.json"), *where]})
        (ended,) = run_jobs_in(tmp_path / "jobs", [job])
    assert ended.codes == [3, 3], ended.output
    assert f"another run uses {run_dir}" in ended.text
    assert sorted(run_dir.rglob("*")) == before


def test_resume_at_the_last_step_trains_nothing(crossed: Path, refusals: dict[str, Ended]) -> None:
    assert refusals["already there"].codes == [0], refusals["already there"].output
    run_dir = crossed / "refusals" / "already_there"
    assert losses(run_dir) == losses(crossed / "run2")
    assert list_tags(run_dir) == list_tags(crossed / "run2")


def test_never_in_a_used_directory_and_unknown_tags_are_user_errors(refusals: dict[str, Ended]) -> None:
    assert refusals["never"].codes == [2]
    assert "is already used by another configuration" in refusals["never"].text
    assert refusals["unknown tag"].codes == [2]
    assert "has no saved state 'epoch77'" in refusals["unknown tag"].text


def test_names_are_not_reused_after_a_resume_from_an_older_tag(
    crossed: Path, refusals: dict[str, Ended]
) -> None:
    assert refusals["older tag"].codes == [0], refusals["older tag"].output
    run_dir = crossed / "refusals" / "older_tag"
    names = [tag.name for tag in list_tags(run_dir)]
    assert {"epoch00-step000010", "epoch00-step000010-take2"} <= set(names)
    last = last_tag(run_dir)
    assert last is not None
    assert last.step == STEPS + 6


def test_requeued_job_resumes_from_its_own_last_state(crossed: Path, refusals: dict[str, Ended]) -> None:
    assert refusals["again"].codes == [0], refusals["again"].output
    run_dir = crossed / "refusals" / "again"
    assert [event["step"] for event in events(run_dir, "resume")] == [STEPS + 4]
    assert list(losses(run_dir)) == list(range(1, STEPS + 7))


def test_run_without_saved_states_may_start_again_from_the_same_source(crossed: Path, tmp_path: Path) -> None:
    config = load_config(crossed / "run1" / "config.json", [f"training.run_dir={tmp_path / 'run'}"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json(), encoding="utf-8")
    tag = list_tags(crossed / "run1")[-1].folder(crossed / "run1")
    assert prepare(config, read_launch({}), ResumeOptions(str(tag))).source == tag
    with pytest.raises(ValueError, match="already used by the same configuration"):
        prepare(config, read_launch({}), ResumeOptions("never"))


def test_state_saved_during_the_wait_for_the_lock_is_resumed(crossed: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(crossed / "run2", tmp_path / "run"))
    *_, before, last = list_tags(run_dir)
    hidden = last.folder(run_dir).rename(tmp_path / "hidden")
    update_pointer(before, run_dir)
    config = load_config(run_dir / "config.json", [f"training.run_dir={run_dir}"])
    prepared = prepare(config, read_launch({}), ResumeOptions())
    assert prepared.source == before.folder(run_dir)
    assert prepare_again(prepared, SINGLE_RANK) is prepared
    hidden.rename(last.folder(run_dir))
    assert prepare_again(prepared, SINGLE_RANK).source == last.folder(run_dir)
    (run_dir / CHECKPOINTS / "latest").write_text("epoch00-step000099\n", encoding="utf-8")
    with pytest.raises(RefusedError, match="has changed since this run began"):
        prepare_again(prepared, SINGLE_RANK)


def test_failed_commit_ends_the_run_after_the_step_that_notices_it(
    crossed: Path, refusals: dict[str, Ended]
) -> None:
    ended = refusals["broken"]
    assert ended.codes == [1, 1], ended.output
    assert ended.text.count("could not be saved: rank 1: [Errno 5] Input/output error") == 2
    assert 8 < max(losses(crossed / "refusals" / "broken")) < 16  # the next save


def test_incomplete_last_metrics_line_is_removed(tmp_path: Path) -> None:
    from aqtopo.training.prepare import truncate_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event":"step"}\n{"event":"st', encoding="utf-8")
    truncate_metrics(path)
    assert path.read_text(encoding="utf-8") == '{"event":"step"}\n'
    truncate_metrics(tmp_path / "absent.jsonl")


def test_metrics_that_are_a_link_are_not_truncated(tmp_path: Path) -> None:
    from aqtopo.training.prepare import truncate_metrics

    (tmp_path / "notes.txt").write_text("one line", encoding="utf-8")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is a link"):
        truncate_metrics(tmp_path / "metrics.jsonl")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "one line"
