"""Trainings of two tiny variants; one is killed and resumes from its checkpoint."""

import json
import multiprocessing
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqtopo.ablation.factors import parse_factors, variants
from aqtopo.ablation.plan import Ablation, Trial, claim_folder, plan_ablation
from aqtopo.ablation.starts import compare_starts
from aqtopo.ablation.trainer import Scorer, format_tasks, is_done, is_scored, run_trials
from aqtopo.checkpoint.tags import last_tag
from aqtopo.cli.main import app
from aqtopo.config import load_config
from aqtopo.data import open_store
from aqtopo.evaluation.evaluate import EvalOptions, EvaluatedSplit, evaluate
from aqtopo.evaluation.results import read_table, write_results, write_tables
from aqtopo.inference.load import load_run
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.log_file import METRICS_FILE
from tests.conftest import TinyConfig
from tests.events import events

GRID = "wind_order,elevation_bias"

ENDED = """{"event": "start", "time": "2026-01-01T00:00:00+00:00", "total_steps": 1}
{"event": "step", "time": "2026-01-01T00:00:01+00:00", "step": 1, "epoch": 0, "train_loss": 0.5, "lr": {}}
{"event": "stop", "time": "2026-01-01T00:00:02+00:00", "reason": "the last step is done"}
"""
"""Log of a finished training."""


@pytest.fixture
def config_path(tiny_config: TinyConfig, tmp_path: Path) -> Path:
    config = tiny_config(
        model={"lead_time": "decoder", "dim": 16, "depth": 1},
        training={"epochs": 10, "validate_every": 12},
        checkpoint={"every_steps": 2, "keep_best": 1},
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    return path


def plan(config_path: Path, grid: str) -> Ablation:
    return plan_ablation(config_path, [], parse_factors([grid]), 1, config_path.parent / "out")


def kill_in(run_dir: Path, finished: threading.Event) -> None:
    """Kill the rank of a run once it has saved a tag, long before its last step."""
    while last_tag(run_dir) is None and not finished.wait(0.01):
        pass
    for child in multiprocessing.active_children():
        child.kill()


def test_variants_have_equal_initial_weights_and_sample_order(config_path: Path) -> None:
    ablation = plan(config_path, GRID)
    configs = [trial.config for trial in ablation.trials]
    starts = compare_starts(configs, open_store(ablation.base.data.store))
    assert starts.different == ()
    assert set(starts.only_in_some) == {"blocks.0.attn.alpha", "blocks.0.attn.qkv.bias"}
    assert starts.equal > 20
    assert starts.same_order
    assert len(set(starts.steps)) == 1


def test_different_weights_and_orders_are_detected(config_path: Path) -> None:
    store = open_store(plan(config_path, GRID).base.data.store)
    seeds = [load_config(config_path, [f"training.seed={seed}"]) for seed in (0, 1)]
    assert "head.0.weight" in compare_starts(seeds, store).different
    lead = [trial.config for trial in plan(config_path, "lead_time").trials]
    assert not compare_starts(lead, store).same_order
    weather = lead[0].data.model_copy(update={"weather_at_horizons": ("u",)})
    ahead = compare_starts([lead[0], lead[0].model_copy(update={"data": weather})], store)
    assert str(ahead).endswith("; perfect weather")
    assert "weather" not in str(compare_starts(lead, store))


@pytest.mark.parametrize(
    "grid",
    [
        "data.history_hours=[],[6,12]",
        'data.forcings=[],["cos_local_time","sin_local_time"]',
        "depth=1,2",
    ],
)
def test_variants_of_the_inputs_have_the_samples_that_the_longest_history_allows(
    config_path: Path, grid: str
) -> None:
    ablation = plan(config_path, grid)
    configs = [trial.config for trial in ablation.trials]
    starts = compare_starts(configs, open_store(ablation.base.data.store))
    assert starts.different == ()
    assert starts.same_order
    longest = (6, 12) if "history" in grid else ()
    assert {config.data.stored_before for config in configs} == {longest}


def test_variants_of_the_precision_start_equal_and_keep_their_folders(config_path: Path) -> None:
    ablation = plan(config_path, "deepspeed.bf16.enabled")
    bf16, fp32 = ablation.trials
    assert (bf16.config.deepspeed.precision, fp32.config.deepspeed.precision) == ("bf16", "fp32")
    claim_folder(ablation)
    starts = compare_starts([bf16.config, fp32.config], open_store(ablation.base.data.store))
    assert (starts.different, starts.only_in_some, starts.same_order) == ((), (), True)
    bf16.run_dir.mkdir(parents=True)
    (bf16.run_dir / "config.json").write_text(fp32.config.to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match="contains another training than bf16=true"):
        claim_folder(ablation)


@pytest.mark.parametrize(
    ("grid", "also"),
    [
        ("alpha=2,2.0", []),
        ("wind_order", ["wind_order=false"]),
        ("wind_order", ["elevation_bias=published"]),
        ("wind_order", ["alpha=1", "alpha=1.0"]),
    ],
    ids=["levels", "the baseline", "the configuration", "outside the grid"],
)
def test_equal_variants_are_refused(config_path: Path, grid: str, also: list[str]) -> None:
    with pytest.raises(ValueError, match=r"are equal\. Remove one of them"):
        plan_ablation(config_path, [], parse_factors([grid]), 1, config_path.parent / "out", also)


def test_variants_with_the_same_folder_are_refused(config_path: Path) -> None:
    also = [f"optimizer.groups[{group}].lr_multiplier=1.25" for group in (0, 1)]
    with pytest.raises(ValueError, match=r"also_lr_multiplier-1\.25.*Train one of them with another --out"):
        plan_ablation(config_path, [], parse_factors(["wind_order"]), 1, config_path.parent / "out", also)


def test_a_run_directory_of_another_variant_is_refused(config_path: Path) -> None:
    """An earlier `--also` leaves such a training, because the folder's name omits sections."""
    ablation = plan(config_path, "wind_order")
    claim_folder(ablation)
    first, second = ablation.trials
    first.run_dir.mkdir(parents=True)
    (first.run_dir / "config.json").write_text(first.config.to_json(), encoding="utf-8")
    claim_folder(ablation)
    (first.run_dir / "config.json").write_text(second.config.to_json(), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"{first.run_dir} contains another training than wind_order=true, seed 0"
    ):
        claim_folder(ablation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", " is not JSON"),
        ("[]", " does not hold one JSON object"),
        ("{}", ": config: missing"),
        ({"factors": 3}, ": factors = 3: "),
        ({"factors": {"model.wind_order": 3}}, ': factors."model.wind_order" = 3: must be a list'),
        ({"config": {"name": 1}}, ": name = 1: must be a string"),
    ],
)
def test_a_damaged_description_is_refused(
    config_path: Path, change: str | dict[str, object], message: str
) -> None:
    ablation = plan(config_path, "wind_order")
    claim_folder(ablation)
    path = ablation.out / "ablation.json"
    damaged = (
        change
        if isinstance(change, str)
        else json.dumps(json.loads(path.read_text(encoding="utf-8")) | change)
    )
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")) as caught:
        claim_folder(ablation)
    assert f"Choose another --out, or remove {ablation.out}." in str(caught.value)


@pytest.mark.slow
def test_a_killed_training_resumes_and_a_finished_one_is_not_changed(config_path: Path) -> None:
    ablation = plan(config_path, "wind_order")
    claim_folder(ablation)
    first, second = (trial.run_dir for trial in ablation.trials)
    stop = threading.Event()
    killer = threading.Thread(target=kill_in, args=(second, stop))
    killer.start()
    said: list[str] = []
    with pytest.raises(RefusedError, match="wind_order=false, seed 0 ended early"):
        run_trials(ablation, 1, said.append)
    stop.set()
    killer.join()
    finished = (first / METRICS_FILE).read_bytes()
    run_trials(ablation, 1, said.append)
    assert all(is_done(trial) for trial in ablation.trials)
    assert (first / METRICS_FILE).read_bytes() == finished
    assert len(events(second, "resume")) == 1
    assert "2 trainings, 1 done" in said
    _tabulate(config_path, ablation)


def _tabulate(config_path: Path, ablation: Ablation) -> None:
    """Run the command, which finds everything done and writes the results."""
    options = ["--grid", "wind_order", "--seeds", "1", "--out", str(ablation.out), "--block-days", "2"]
    result = CliRunner().invoke(app, ["ablate", str(config_path), *options], catch_exceptions=False)
    assert "2 trainings, 2 done" in result.output
    assert "wind_order=true (not false)" in (ablation.out / "results.md").read_text(encoding="utf-8")
    assert (ablation.out / "results.nc").is_file()


def test_slurm_prints_the_job_array_and_trains_nothing(config_path: Path) -> None:
    out = config_path.parent / "out"
    options = ["--grid", GRID, "--seeds", "2", "--out", str(out), "--block-days", "2", "--slurm"]
    result = CliRunner().invoke(app, ["ablate", str(config_path), *options], catch_exceptions=False)
    assert f"slurm/submit.sh --array=0-7 slurm/ablation.sbatch {shlex.quote(str(out))}" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["ablation.json", "configs"]
    assert len(list((out / "configs").iterdir())) == 8


def test_too_few_test_days_are_refused_before_training(config_path: Path) -> None:
    out = config_path.parent / "out"
    options = ["--grid", GRID, "--out", str(out), "--block-days", "4", "--slurm"]
    with pytest.raises(ValueError, match=r"6 test days .* blocks of 4.*--block-days"):
        CliRunner().invoke(app, ["ablate", str(config_path), *options], catch_exceptions=False)
    assert not out.exists()


def trained_by_task(out: Path) -> dict[str, str]:
    """Return the run directory of each job-array task, relative to the ablation's runs."""
    return {
        path.stem: str(Path(load_config(path).training.run_dir).relative_to(out / "runs"))
        for path in (out / "configs").glob("*.json")
    }


def test_task_numbers_are_stable_when_the_ablation_grows(config_path: Path) -> None:
    out = config_path.parent / "out"

    def array(*options: str) -> str:
        given = ["ablate", str(config_path), *options, "--out", str(out), "--block-days", "2", "--slurm"]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        return result.output

    array("--grid", "wind_order", "--seeds", "1")
    before = trained_by_task(out)
    assert before == {"0": "wind_order-true/seed0", "1": "wind_order-false/seed0"}
    said = array("--grid", "wind_order", "--also", "alpha=1.0", "--seeds", "2")
    assert f"slurm/submit.sh --array=0-5 slurm/ablation.sbatch {shlex.quote(str(out))}" in said
    assert "0-1 may already be queued" in said
    after = trained_by_task(out)
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after) == 6
    array("--grid", "wind_order", "--seeds", "1")
    assert trained_by_task(out) == after


def test_finished_trainings_are_not_submitted_again(config_path: Path) -> None:
    ablation = plan(config_path, GRID)
    claim_folder(ablation)
    options = ["--grid", GRID, "--seeds", "1", "--out", str(ablation.out), "--block-days", "2", "--slurm"]
    for done, said in (((1,), "--array=0,2-3 "), ((0, 1, 2, 3), "all 4 trainings are done")):
        for number in done:
            run_dir = ablation.trials[number].run_dir
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / METRICS_FILE).write_text(ENDED, encoding="utf-8")
        assert said in CliRunner().invoke(app, ["ablate", str(config_path), *options]).output


@pytest.mark.parametrize(
    ("split", "options"),
    [
        ("validation", EvalOptions()),
        ("test", EvalOptions(every_hours=48)),
        ("test", EvalOptions(weighting="area")),
    ],
)
def test_scores_of_another_split_weighting_or_fewer_days_are_not_accepted(
    tiny_config: TinyConfig,
    save_untrained: Callable[..., Path],
    split: EvaluatedSplit,
    options: EvalOptions,
) -> None:
    """`aqtopo evaluate` in the folder of a training leaves such scores."""
    config = tiny_config()
    run_dir = save_untrained(config)
    trial = Trial(0, variants(parse_factors(["wind_order"]))[0], 0, config)
    assert not is_scored(trial)
    write_results(evaluate(load_run(run_dir), split, options=options), run_dir)
    assert not is_scored(trial)
    write_tables({"by_day": read_table(run_dir, "by_day").drop_attrs()}, run_dir)
    assert not is_scored(trial)
    Scorer().score(trial)
    assert is_scored(trial)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")],
)
def test_tasks_have_the_format_of_sbatch(numbers: list[int], text: str) -> None:
    assert format_tasks(numbers) == text
