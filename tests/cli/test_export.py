"""`aqtopo export`, and forecasts from what it wrote."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.checkpoint.manifest import WEIGHTS_FILE
from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.evaluation.points import BASELINES, FORECASTS, WEIGHTINGS
from aqtopo.evaluation.results import SCORES_FILE, read_score_file
from aqtopo.evaluation.score_record import FORMAT_VERSION
from aqtopo.inference.card import CARD_FILE, MODEL_FILE, README_FILE, STATIC_FILE, read_card
from aqtopo.inference.load import load_run
from aqtopo.variables import Variable

Command = Callable[..., Any]

INIT = "2018-01-03T00"
FILES = sorted([CARD_FILE, MODEL_FILE, README_FILE, STATIC_FILE])

WITHOUT_DEEPSPEED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("deepspeed", "pickle5"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
from aqtopo.cli.main import main
main()
"""


@pytest.fixture
def exported(aqtopo: Command, untrained_run: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.tmp").mkdir()
    assert aqtopo("export", untrained_run, tmp_path / "model").code == 0
    assert (tmp_path / "model.tmp").is_dir()  # somebody else's
    return tmp_path / "model"


def write_made_scores(run_dir: Path, tag: str) -> dict[str, Any]:
    """Scores of a state, invented; what the card should hold of them."""
    measures = {"rmse": 1.0, "mae": 1.0, "bias": 0.5, "acc": None}
    entry = {"pollutant": "pm25", "horizon_h": 12, "units": "ug m-3", "count": 9, "left_out": 0}
    entry |= dict.fromkeys(FORECASTS, measures)
    init = {"initialisations": 1, "first_init": "2018-01-01T00", "last_init": "2018-01-01T00"}
    head = {"run": "tiny", "tag": tag, "split": "test", "years": [2018], "created": "2018-02-01", **init}
    head |= {"weighting": WEIGHTINGS["none"]}
    scores = [entry | {"skill": dict.fromkeys(BASELINES, 0.0) | {"climatology": None}}]
    content = {"format_version": FORMAT_VERSION, **head, "scores": scores, "exceedances": [], "spectra": []}
    (run_dir / SCORES_FILE).write_text(
        json.dumps(content | {"strata": {"season": {"DJF": scores}}}), encoding="utf-8"
    )
    return content


def without_history(path: Path) -> xr.Dataset:
    with xr.open_dataset(path) as dataset:
        loaded = dataset.load()
    del loaded.attrs["history"]
    return loaded


def test_exported_model_and_run_give_equal_forecasts(
    aqtopo: Command, untrained_run: Path, exported: Path, tmp_path: Path
) -> None:
    for source, name in ((untrained_run, "run.nc"), (exported, "model.nc")):
        assert aqtopo("forecast", source, tmp_path / name, "--init", INIT).code == 0
    xr.testing.assert_identical(without_history(tmp_path / "run.nc"), without_history(tmp_path / "model.nc"))


@pytest.mark.slow
def test_exported_model_forecasts_without_deepspeed(exported: Path, tmp_path: Path) -> None:
    arguments = ["forecast", str(exported), str(tmp_path / "out.zarr"), "--init", INIT]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEEPSPEED, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "pm25, pm10, so2, no2, co, o3" in ended.stdout
    blocked = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_DEEPSPEED.replace("from aqtopo.cli.main import main\nmain()", "import deepspeed"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "deepspeed is not installed here" in blocked.stderr


def test_exported_files_contain_no_pickle(exported: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == FILES
    for name in (STATIC_FILE, MODEL_FILE):
        length = int.from_bytes((exported / name).read_bytes()[:8], "little")
        assert json.loads((exported / name).read_bytes()[8 : 8 + length])


def test_card_describes_the_model(aqtopo: Command, untrained_run: Path, tmp_path: Path) -> None:
    run = load_run(untrained_run)
    scores = write_made_scores(untrained_run, run.tag.name)
    ended = aqtopo("export", untrained_run, tmp_path / "model", "--tag", "last")
    assert "with its scores" in ended.out
    card = json.loads((tmp_path / "model" / CARD_FILE).read_text(encoding="utf-8"))
    assert card["tag"] == run.tag.name
    assert card["data"]["train_years"] == [2016]
    assert card["data"]["simulated"] is True
    assert card["data"]["cells"] == [8, 16]
    assert card["data"]["lat_range"] == [20.0, 48.0]
    assert card["normalization"]["mean"] == dict(run.store.mean)
    assert card["config"] == json.loads(run.config.to_json())
    assert card["config_digest"] == run.config.digest
    assert {"aqtopo", "torch", "commit"} <= card["exported_with"].keys()
    assert card["scores"] == scores | {"variables": []}


def test_damaged_scores_are_refused_before_the_export(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    content = write_made_scores(untrained_run, "any")
    del content["scores"][0]["skill"]
    (untrained_run / SCORES_FILE).write_text(json.dumps(content), encoding="utf-8")
    complaint = aqtopo("export", untrained_run, tmp_path / "model").complaint
    assert f"{untrained_run / SCORES_FILE}: scores[0].skill: missing" in complaint
    assert f"Score the run again with `aqtopo evaluate {untrained_run}`." in complaint
    assert not list(tmp_path.glob("model*"))


def test_scores_of_another_state_are_not_exported(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    tag = load_run(untrained_run).tag.name
    assert "without scores: the run has none" in aqtopo("export", untrained_run, tmp_path / "before").out
    write_made_scores(untrained_run, "epoch00-step000003")
    said = aqtopo("export", untrained_run, tmp_path / "model").out
    assert "without scores: those of the run are of epoch00-step000003" in said
    assert f"aqtopo evaluate {untrained_run} --tag {tag}" in said
    assert read_card(tmp_path / "model").scores is None


def test_hours_of_another_store_use_terrain_and_statistics_of_the_training(
    aqtopo: Command, exported: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    later = tiny_dataset.assign_coords(time=tiny_dataset["time"] + np.timedelta64(3 * 365, "D"))
    write_store(later, tmp_path / "later.zarr")  # without statistics
    out = tmp_path / "out.nc"
    init = "2019-01-05T00"
    ended = aqtopo("forecast", exported, out, "--init", init, "--store", tmp_path / "later.zarr")
    assert ended.code == 0, ended.err
    assert aqtopo("forecast", exported, tmp_path / "first.nc", "--init", "2016-01-06T00").code == 0
    with xr.open_dataset(out) as one, xr.open_dataset(tmp_path / "first.nc") as other:
        np.testing.assert_array_equal(one["pm25"], other["pm25"])


def test_further_channels_of_another_store_are_not_read(
    aqtopo: Command, exported: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    channels, static = tiny_dataset["channel"].values.tolist(), tiny_dataset["static_channel"].values.tolist()
    more = tiny_dataset.isel(channel=[*range(11), 0], static_channel=[*range(5), 4])
    more = more.assign_coords(channel=[*channels, "w"], static_channel=[*static, "sea"])
    wind = Variable(name="w", long_name="vertical wind", units="m s-1", valid_range=(-50.0, 50.0))
    sea = Variable(name="sea", long_name="sea", units="1", valid_range=(0.0, 1.0), kind="static")
    more["fields"][:, -1] = np.nan
    write_store(more, tmp_path / "more.zarr", variables=[wind, sea])
    for out, options in (("one.nc", ["--store", tmp_path / "more.zarr"]), ("other.nc", [])):
        ended = aqtopo("forecast", exported, tmp_path / out, "--init", INIT, *options)
        assert ended.code == 0, ended.err
    with xr.open_dataset(tmp_path / "one.nc") as one, xr.open_dataset(tmp_path / "other.nc") as other:
        np.testing.assert_array_equal(one["pm25"], other["pm25"])


def test_a_store_in_other_units_than_the_card_is_refused(
    aqtopo: Command, exported: Path, tmp_path: Path
) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    described = {each["name"]: each for each in card["variables"]}
    assert described["pm25"]["long_name"] == "PM2.5"
    described["pm25"]["units"] = "mg m-3"
    (exported / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    ended = aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT)
    assert "has pm25 in 'ug m-3', and tiny was trained on it in 'mg m-3'" in ended.complaint


def test_a_card_without_descriptions_has_the_defaults(
    aqtopo: Command, exported: Path, tmp_path: Path
) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    del card["variables"]  # as older versions wrote it
    (exported / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    assert aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT).code == 0


def test_a_store_on_another_grid_is_refused(
    aqtopo: Command, exported: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    write_store(tiny_dataset.assign_coords(lon=tiny_dataset["lon"] + 1.0), tmp_path / "east.zarr")
    ended = aqtopo(
        "forecast", exported, tmp_path / "out.nc", "--init", INIT, "--store", tmp_path / "east.zarr"
    )
    assert "is on another grid than tiny was trained on: its lon" in ended.complaint


def test_a_store_in_another_convention_of_longitude_gives_the_same_forecast(
    aqtopo: Command,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[..., Path],
    tiny_dataset: xr.Dataset,
    tmp_path: Path,
) -> None:
    for path, shift in (("west.zarr", -200.0), ("turned.zarr", 160.0)):
        dataset = tiny_dataset.assign_coords(lon=tiny_dataset["lon"] + shift).copy(deep=True)
        dataset["static"].loc[{"static_channel": "lon2d"}] += shift
        write_store(dataset, tmp_path / path)
    write_statistics(tmp_path / "west.zarr", [2016])
    run = save_untrained(tiny_config(data={"store": str(tmp_path / "west.zarr")}))
    assert aqtopo("export", run, tmp_path / "model").code == 0
    for out, store in (("one.nc", "west.zarr"), ("other.nc", "turned.zarr")):
        ended = aqtopo(
            "forecast", tmp_path / "model", tmp_path / out, "--init", INIT, "--store", tmp_path / store
        )
        assert ended.code == 0, ended.err
    with xr.open_dataset(tmp_path / "one.nc") as one, xr.open_dataset(tmp_path / "other.nc") as other:
        xr.testing.assert_equal(one, other)


def test_a_store_with_its_rows_the_other_way_is_refused_with_the_remedy(
    aqtopo: Command, exported: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    write_store(tiny_dataset.isel(lat=slice(None, None, -1)), tmp_path / "south.zarr")
    ended = aqtopo(
        "forecast", exported, tmp_path / "o.nc", "--init", INIT, "--store", tmp_path / "south.zarr"
    )
    assert "with its rows the other way: `d.sortby('lat', ascending=True)`" in ended.complaint


def test_exported_model_has_only_one_state(aqtopo: Command, exported: Path, tmp_path: Path) -> None:
    tag = read_card(exported).tag
    complaint = aqtopo(
        "forecast", exported, tmp_path / "o.nc", "--init", INIT, "--tag", "epoch00-step000003"
    ).complaint
    assert "--tag epoch00-step000003" in complaint
    assert f"holds one state, {tag}" in complaint
    assert aqtopo("forecast", exported, tmp_path / "o.nc", "--init", INIT, "--tag", tag).code == 0


def test_run_accepts_its_store_elsewhere_and_no_other_one(
    aqtopo: Command, untrained_run: Path, tiny_store: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "same.zarr").symlink_to(tiny_store)
    write_store(
        tiny_dataset.assign(fields=tiny_dataset["fields"] * np.float32(1.01)), tmp_path / "other.zarr"
    )
    write_statistics(tmp_path / "other.zarr", [2016])
    command = ("forecast", untrained_run, tmp_path / "o.nc", "--init", INIT, "--store")
    assert aqtopo(*command, tmp_path / "same.zarr").code == 0
    complaint = aqtopo(*command, tmp_path / "other.zarr", "--overwrite").complaint
    assert "export the run first" in complaint


def test_exported_model_is_scored_like_its_run(
    aqtopo: Command, untrained_run: Path, exported: Path, tiny_store: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    command = ("evaluate", exported, "--store", tiny_store, "--output", output)
    assert "is not a folder" in aqtopo(*command).complaint
    output.mkdir()
    assert aqtopo(*command).code == aqtopo("evaluate", untrained_run).code == 0
    assert read_score_file(output).scores == read_score_file(untrained_run).scores
    assert sorted(path.name for path in exported.iterdir()) == FILES


@pytest.mark.parametrize("name", [MODEL_FILE, STATIC_FILE])
def test_a_damaged_file_is_refused(aqtopo: Command, exported: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((exported / name).read_bytes())
    data[-1] ^= 1
    (exported / name).write_bytes(data)
    ended = aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT)
    assert ended.code == 3
    assert name in ended.err


def test_unreadable_card_is_refused(aqtopo: Command, exported: Path, tmp_path: Path) -> None:
    (exported / CARD_FILE).write_text("{}", encoding="utf-8")
    complaint = aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT).complaint
    assert f"{exported / CARD_FILE}: name: missing" in complaint
    assert "Export the model again" in complaint


@pytest.mark.parametrize("std", [-1.0, None])
def test_a_deviation_in_a_card_that_is_none_is_refused(
    aqtopo: Command, exported: Path, tmp_path: Path, std: float | None
) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    card["normalization"]["std"]["pm25"] = std
    (exported / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    complaint = aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT).complaint
    assert "normalization.std.pm25" in complaint


def test_unknown_settings_in_a_card_are_named(aqtopo: Command, exported: Path, tmp_path: Path) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    card["config"]["model"]["sixth_sense"] = True
    (exported / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    ended = aqtopo("forecast", exported, tmp_path / "out.nc", "--init", INIT)
    assert "model.sixth_sense" in ended.complaint
    assert "use that version" in ended.complaint


def test_damaged_facts_of_the_training_are_named(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    for facts, fault in (("{", " is not JSON"), ("[]", " does not hold one JSON object")):
        (untrained_run / "run.json").write_text(facts, encoding="utf-8")
        assert f"run.json{fault}" in aqtopo("export", untrained_run, tmp_path / "model").complaint
    assert not list(tmp_path.glob("model*"))


def test_existing_folder_is_kept_and_failed_export_is_removed(
    aqtopo: Command,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[..., Path],
    exported: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    assert "exists" in aqtopo("export", run_dir, exported).complaint
    assert "there is no folder" in aqtopo("export", run_dir, tmp_path / "absent" / "model").complaint
    (weights,) = run_dir.glob(f"checkpoints/*/{WEIGHTS_FILE}")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert aqtopo("export", run_dir, tmp_path / "broken").code == 3
    assert not list(tmp_path.glob("broken*"))


def test_readme_is_a_card_of_hugging_face(aqtopo: Command, untrained_run: Path, tmp_path: Path) -> None:
    write_made_scores(untrained_run, load_run(untrained_run).tag_name)
    assert aqtopo("export", untrained_run, tmp_path / "model").code == 0
    readme = (tmp_path / "model" / README_FILE).read_text(encoding="utf-8")
    assert readme.startswith("---\nlibrary_name: aqtopo\n")
    assert "# tiny" in readme
    assert "8 x 16 cells, 20 to 48 degrees north, 74 to 134 degrees east" in readme
    assert "The data are simulated" in readme
    assert "| RMSE | lead time | model | persistence | climatology | linear | linear_same | units |" in readme
    assert "| pm25 | 12 h | 1 | 1 | 1 | 1 | 1 | ug m-3 |" in readme
    assert "Split: test, 2018.\n" in readme
    config = json.loads((tmp_path / "model" / CARD_FILE).read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("aqtopo", ["AirQualityViT"])


def test_readme_names_the_weather_and_the_weights_of_its_scores(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    content = write_made_scores(untrained_run, load_run(untrained_run).tag_name)
    content |= {"weather": "perfect weather", "weighting": WEIGHTINGS["area"], "strata": {}}
    (untrained_run / SCORES_FILE).write_text(json.dumps(content), encoding="utf-8")
    assert aqtopo("export", untrained_run, tmp_path / "model").code == 0
    readme = (tmp_path / "model" / README_FILE).read_text(encoding="utf-8")
    assert "Split: test, 2018; perfect weather; cells weighted by area.\n" in readme


def test_export_of_an_earlier_version_can_be_loaded(
    aqtopo: Command, exported: Path, untrained_run: Path, tmp_path: Path
) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    for name in ("model_type", "architectures"):
        del card[name]
    card["format_version"] = 1
    card["files"][WEIGHTS_FILE] = card["files"].pop(MODEL_FILE)
    (exported / "card.json").write_text(json.dumps(card), encoding="utf-8")
    (exported / MODEL_FILE).rename(exported / WEIGHTS_FILE)
    for name in (CARD_FILE, README_FILE):
        (exported / name).unlink()
    for source, name in ((untrained_run, "run.nc"), (exported, "model.nc")):
        assert aqtopo("forecast", source, tmp_path / name, "--init", INIT).code == 0
    xr.testing.assert_identical(without_history(tmp_path / "run.nc"), without_history(tmp_path / "model.nc"))


@pytest.mark.parametrize(("name", "fault"), [("secret", "lists the files"), ("../../secret", "must match")])
def test_card_with_other_files_is_refused(
    aqtopo: Command, exported: Path, tmp_path: Path, name: str, fault: str
) -> None:
    card = json.loads((exported / CARD_FILE).read_text(encoding="utf-8"))
    card["files"][name] = card["files"][STATIC_FILE]
    (exported / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    complaint = aqtopo("forecast", exported, tmp_path / "o.nc", "--init", INIT).complaint
    assert fault in complaint
