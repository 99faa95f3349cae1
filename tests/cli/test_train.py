"""Errors of the user end with code 2 and a paragraph, and leave no file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from aqtopo.cli.main import main
from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.run_directory.batch_job import JOB_DIR

TinyConfig = Callable[..., RunConfig]
Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The message with which `aqtopo train CONFIG` refuses a configuration, after checking how it ends."""

    def refuse(config: RunConfig, *arguments: str) -> str:
        path = tmp_path / "config.json"
        path.write_text(config.to_json(), encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["aqtopo", "train", str(path), *arguments])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert ending.value.code == 2
        assert output.out == ""
        assert "Traceback" not in output.err
        return " ".join(output.err.split())

    return refuse


def nothing_written(config: RunConfig) -> bool:
    return not Path(config.training.run_dir).exists()


def test_other_world_size_than_configured(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config(training={"ranks_per_node": 2})
    expected = "1 process(es) were started, but training.nodes x training.ranks_per_node = 1 x 2 = 2"
    message = refusal(config)
    assert expected in message
    assert "`deepspeed --num_gpus 2 --module aqtopo ...`" in message  # `doctor` shows it too
    assert nothing_written(config)


def test_missing_store(tiny_config: TinyConfig, refusal: Refusal, tmp_path: Path) -> None:
    config = tiny_config(data={"store": str(tmp_path / "nowhere.zarr")})
    assert "nowhere.zarr" in refusal(config)
    assert nothing_written(config)


def test_store_of_another_grid(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config(data={"grid": [16, 16]})
    message = refusal(config)
    assert "8 x 16" in message
    assert "16 x 16" in message
    assert nothing_written(config)


def test_statistics_of_other_years(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config(data={"train_years": [2017], "validation_years": [2016]})
    assert "aqtopo data statistics" in refusal(config)
    assert nothing_written(config)


def test_channel_without_any_value(
    tiny_config: TinyConfig, refusal: Refusal, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    tiny_dataset["fields"].loc[{"channel": "so2"}] = float("nan")
    path = tmp_path / "gap.zarr"
    write_store(tiny_dataset, path)
    write_statistics(path, [2016])
    config = tiny_config(data={"store": str(path)})
    assert "so2" in refusal(config)
    assert nothing_written(config)


def test_run_directory_of_another_configuration(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config()
    run_dir = Path(config.training.run_dir)
    run_dir.mkdir()
    (run_dir / "config.json").write_text(tiny_config(name="other").to_json(), encoding="utf-8")
    assert "is already used by another configuration" in refusal(config)
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]


def test_run_directory_of_the_same_configuration(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config()
    run_dir = Path(config.training.run_dir)
    run_dir.mkdir()
    (run_dir / "config.json").write_text(config.to_json(), encoding="utf-8")
    assert "is already used by the same configuration" in refusal(config, "--resume", "never")
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]


def test_run_directory_with_foreign_files(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config()
    run_dir = Path(config.training.run_dir)
    run_dir.mkdir()
    (run_dir / "thesis.tex").touch()
    assert "is not empty and holds no run" in refusal(config)
    assert [path.name for path in run_dir.iterdir()] == ["thesis.tex"]


def test_run_directory_that_is_a_file(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config()
    Path(config.training.run_dir).write_text("not a directory", encoding="utf-8")
    assert "cannot be written" in refusal(config)
    assert Path(config.training.run_dir).read_text(encoding="utf-8") == "not a directory"


def test_unwritable_run_directory(tiny_config: TinyConfig, refusal: Refusal) -> None:
    # Not even root may create a file here, so the test means the same for every user.
    config = tiny_config(training={"run_dir": "/proc/self/fdinfo/run"})
    assert "/proc/self/fdinfo/run cannot be written" in refusal(config)


def test_epoch_too_short_to_be_validated(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config(training={"validate_every": 100})
    assert "an epoch has only 48" in refusal(config)
    assert nothing_written(config)


def test_missing_config_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["aqtopo", "train", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert "none.json" in capsys.readouterr().err


def test_invalid_option_is_recorded_as_never_for_the_batch_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(JOB_DIR, str(tmp_path))
    monkeypatch.setattr("sys.argv", ["aqtopo", "train", "config.json", "--stop-afterr", "3"])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert "--stop-afterr" in capsys.readouterr().err
    assert (tmp_path / "never").read_text(encoding="utf-8") == "2 the command line is invalid\n"


def test_validation_year_without_a_usable_time(tiny_config: TinyConfig, refusal: Refusal) -> None:
    config = tiny_config(data={"validation_years": [2030]}, training={"validate_every": 4})
    assert "data.validation_years" in refusal(config)
    assert nothing_written(config)


def test_path_to_resume_that_does_not_exist(
    tiny_config: TinyConfig, refusal: Refusal, tmp_path: Path
) -> None:
    config = tiny_config(training={"validate_every": 4})
    absent = tmp_path / "run" / "checkpoints" / "epoch01"
    assert f"--resume {absent}: there is no such folder" in refusal(config, "--resume", str(absent))
    assert nothing_written(config)


def test_group_pattern_that_matches_nothing(tiny_config: TinyConfig, refusal: Refusal) -> None:
    groups = [{"name": "all", "lr_multiplier": 1.0, "parameters": ["*", "blokcs.*"]}]
    config = tiny_config(optimizer={"base_lr": 1e-3, "groups": groups}, training={"validate_every": 4})
    assert "'blokcs.*' (all) matches no parameter" in refusal(config)
    assert nothing_written(config)


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        int("not a number")

    monkeypatch.setattr("aqtopo.config.load_config", broken)
    monkeypatch.setattr("sys.argv", ["aqtopo", "train", str(tmp_path / "config.json")])
    with pytest.raises(ValueError, match="invalid literal"):
        main()


def test_mask_without_a_single_cell(
    tiny_config: TinyConfig, refusal: Refusal, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    tiny_dataset["static"].loc[{"static_channel": "mask"}] = 0.0
    path = tmp_path / "sea.zarr"
    write_store(tiny_dataset, path)
    write_statistics(path, [2016])
    config = tiny_config(data={"store": str(path)}, training={"validate_every": 4})
    assert "mask" in refusal(config)
    assert nothing_written(config)


def test_half_precision_without_a_gpu(
    tiny_config: TinyConfig, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = tiny_config(deepspeed={"fp16": {"enabled": True}}, training={"validate_every": 4})
    assert "deepspeed.fp16.enabled = true needs a GPU" in refusal(config)
    assert nothing_written(config)


def test_monitor_whose_package_is_missing(
    tiny_config: TinyConfig, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aqtopo.training.engine.find_spec", lambda _: None)
    config = tiny_config(monitors={"wandb": {}}, training={"validate_every": 4})
    assert "needs the package wandb" in refusal(config)
    assert nothing_written(config)
