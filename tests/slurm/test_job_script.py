"""Decisions of slurm/job.sh, with fakes of Slurm and `aqtopo`; test_batch.py uses a real Slurm."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SRUN = (
    '[[ $1 != --help ]] || { cat "$FAKES/help"; exit; }; '
    'while [[ $1 == --* ]]; do echo "$1" >>"$FAKES/srun"; shift; done; exec "$@"'
)
SQUEUE = (
    'case "$*" in *%l*) echo 10:00;; *restartcnt*) cat "$FAKES/restarts";; *%r*) cat "$FAKES/reason";; '
    '*%T*) cat "$FAKES/state";; esac'
)
RECORD = 'printf "%s\\n" "$(basename "$0")" "$@" >>"$FAKES/calls"; '
CONTAINER = RECORD + 'while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"'
COMMANDS = {
    "srun": SRUN,
    "squeue": SQUEUE,
    "scontrol": RECORD,
    "singularity": CONTAINER,
    "apptainer": CONTAINER,
    "aqtopo": RECORD + 'eval "$RANK_DOES"',
}


@dataclass(frozen=True)
class Script:
    """Running batch script.

    Attributes:
        process: the shell.
        fakes: folder with the inputs and the calls of the fake commands, and the log.
    """

    process: subprocess.Popen[bytes]
    fakes: Path

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and log."""
        code = self.process.wait(timeout=30)
        return code, (self.fakes / "log").read_text(encoding="utf-8")

    def calls(self) -> list[str]:
        """Return names and arguments of the called commands, in order."""
        noted = self.fakes / "calls"
        return noted.read_text(encoding="utf-8").splitlines() if noted.exists() else []

    @property
    def requeued(self) -> bool:
        """True if it requested a requeue from Slurm."""
        return "requeue" in self.calls()


StartScript = Callable[..., Script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartScript]:
    """Return a function that starts job.sh on one node; the fake `aqtopo` runs the commands `rank_does`."""
    programs, fakes = tmp_path / "bin", tmp_path / "fakes"
    for folder in (programs, fakes):
        folder.mkdir()
    for name, text in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    (fakes / "help").touch()
    (fakes / "state").write_text("RUNNING\n", encoding="utf-8")
    (fakes / "reason").write_text("None\n", encoding="utf-8")
    (fakes / "restarts").write_text("0\n", encoding="utf-8")
    config = tmp_path / "run.json"
    config.touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(
        rank_does: str = "true", arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> Script:
        (fakes / "calls").unlink(missing_ok=True)
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "33123",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS_PER_NODE": "2",
            "AQTOPO_JOBS": str(tmp_path / "jobs"),
            "TMPDIR": str(tmp_path),
            "RANK_DOES": rank_does,
            "FAKES": str(fakes),
        }
        with (fakes / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", str(ROOT / "slurm" / "job.sh"), str(config), *arguments],
                cwd=ROOT,
                env=environment | (variables or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return Script(process, fakes)

    yield start
    for process in started:  # with the remaining ranks
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fails(file: str, code: int = 1) -> str:
    return f'echo "{code} because of it" >"$AQTOPO_JOB_DIR/{file}"; exit {code}'


def test_permanent_failure_is_not_requeued_and_keeps_the_code_of_the_rank(start: StartScript) -> None:
    script = start(fails("never", 3))
    code, log = script.end()
    assert code == 3
    assert "ended with code 3; not requeued, because a retry cannot fix the cause: because of it" in log
    assert not script.requeued


def test_temporary_failure_is_tried_three_times(start: StartScript) -> None:
    for number in (1, 2):
        script = start(fails("failed"))
        code, log = script.end()
        assert (code, script.requeued) == (0, True)
        assert f"failed with code 1: because of it\n{log.splitlines()[-1]}" in log
        assert f"({number} of 3 in a row without a new saved state)" in log
    script = start(fails("failed"))
    assert script.end()[0] == 1
    assert not script.requeued


def test_saved_state_resets_the_count_of_failures(start: StartScript) -> None:
    for _ in range(4):
        script = start('touch "$AQTOPO_JOB_DIR/saved"; ' + fails("failed"))
        assert "(1 of 3 in a row" in script.end()[1]
        assert script.requeued


def test_job_is_not_requeued_if_failures_cannot_be_counted(start: StartScript) -> None:
    script = start('ln -s /nowhere/failures "$AQTOPO_JOB_DIR/failures"; exit 7')
    code, log = script.end()
    assert "failures cannot be counted" in log
    assert (code, script.requeued) == (7, False)


def test_empty_failure_note_leaves_the_code_of_the_launcher(start: StartScript) -> None:
    assert start('touch "$AQTOPO_JOB_DIR/never"; exit 3').end()[0] == 3


def test_only_this_task_of_an_array_is_requeued(start: StartScript) -> None:
    # In Slurm, the last task has the id of the whole array.
    script = start("exit 1", variables={"SLURM_ARRAY_JOB_ID": "33123", "SLURM_ARRAY_TASK_ID": "4"})
    assert script.end()[0] == 0
    assert script.calls()[-3:] == ["scontrol", "requeue", "33123_4"]


def test_requeue_is_retried_if_the_controller_is_busy(start: StartScript, tmp_path: Path) -> None:
    busy = '[[ -e $FAKES/asked ]] || { touch "$FAKES/asked"; echo "Socket timed out" >&2; exit 1; }'
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/bash\n{busy}\n{RECORD}\n", encoding="utf-8")
    script = start("exit 1")
    assert (script.end()[0], script.requeued) == (0, True)


def test_ranks_get_the_cores_per_task_of_the_job(start: StartScript) -> None:
    script = start(variables={"SLURM_CPUS_PER_TASK": "7"})
    assert script.end()[0] == 0
    assert "--cpus-per-task=7" in (script.fakes / "srun").read_text(encoding="utf-8").splitlines()


def test_node_without_room_for_caches_is_a_temporary_failure(start: StartScript) -> None:
    script = start(variables={"TMPDIR": "/proc"})
    code, log = script.end()
    assert "the caches on a node could not be created" in log
    assert (code, script.requeued) == (0, True)
    assert "train" not in script.calls()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AQTOPO_LAUNCH": "mpirun"}, "AQTOPO_LAUNCH=mpirun is invalid. Use srun, deepspeed or torchrun"),
        ({"SLURM_NTASKS_PER_NODE": ""}, "Submit with slurm/submit.sh, or with --ntasks-per-node"),
        ({"AQTOPO_LAUNCH": "deepspeed", "AQTOPO_CONTAINER": "a.sif"}, "cannot start ranks in a container"),
        ({"SLURM_JOB_ID": ""}, "this is not a Slurm job"),
        ({"AQTOPO_JOBS": "/proc/jobs"}, "Name a shared disk in AQTOPO_JOBS"),
        ({"AQTOPO_SITE": "frontier"}, "no file slurm/sites/frontier.sh in"),
        ({"AQTOPO_CONTAINER": "/absent.sif"}, "AQTOPO_CONTAINER=/absent.sif: there is no such image"),
        (
            {"AQTOPO_CONTAINER": "docker://a", "AQTOPO_CONTAINER_RUN": "podmann run"},
            "AQTOPO_CONTAINER_RUN=podmann run: there is no program podmann",
        ),
        ({"AQTOPO_CONTAINER": "a", "AQTOPO_CONTAINER_RUN": "srun"}, "Slurm lacks pyxis"),
    ],
)
def test_bad_input_of_the_script_gives_a_message_and_no_retry(
    start: StartScript, variables: dict[str, str], message: str
) -> None:
    script = start(variables=variables)
    code, log = script.end()
    assert code == 2
    assert message in log
    assert script.calls() == []


def test_missing_aqtopo_command_is_refused(start: StartScript, tmp_path: Path) -> None:
    (tmp_path / "bin" / "aqtopo").unlink()
    script = start(variables={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    code, log = script.end()
    assert (code, script.calls()) == (2, [])
    assert "the command aqtopo is not on PATH. Activate its environment before sbatch" in log


WAITS = 'touch "$FAKES/started"; trap "" TERM; sleep 60'
"""Command of a rank that ignores SIGTERM."""


def interrupted(script: Script) -> tuple[int, str]:
    """Send SIGTERM to the batch shell while the ranks run; return exit code and log."""
    while not (script.fakes / "started").exists():
        time.sleep(0.01)
    script.process.send_signal(signal.SIGTERM)
    return script.end()


def test_job_is_requeued_if_ranks_are_too_slow_for_the_time_limit(start: StartScript) -> None:
    script = start(f'touch "$AQTOPO_JOB_DIR/saved"; {WAITS} & wait', variables={"AQTOPO_LAST_WAIT_S": "0.2"})
    (script.fakes / "reason").write_text("TimeLimit\n", encoding="utf-8")
    code, log = interrupted(script)
    assert "the time limit came before all ranks had stopped; requeued" in log
    assert (code, script.requeued) == (0, True)


def test_job_requeued_by_slurm_is_not_reported_as_cancelled(start: StartScript) -> None:
    script = start('touch "$FAKES/started"; sleep 0.3')
    (script.fakes / "restarts").write_text("1\n", encoding="utf-8")
    code, log = interrupted(script)
    assert "Slurm, which has requeued the job" in log
    assert "cancelled" not in log
    assert (code, script.requeued) == (0, False)


def test_cancelled_job_whose_ranks_end_before_its_shell_is_signalled_is_not_requeued(
    start: StartScript,
) -> None:
    script = start('echo COMPLETING >"$FAKES/state"; exit 143')
    code, log = script.end()
    assert "cancelled; not requeued" in log
    assert (code, script.requeued) == (0, False)


def test_cancelled_job_is_not_requeued_after_a_save(start: StartScript) -> None:
    script = start('echo saved >"$AQTOPO_JOB_DIR/again"; touch "$FAKES/started"; sleep 0.3')
    code, log = interrupted(script)
    assert "cancelled; not requeued" in log
    assert (code, script.requeued) == (0, False)


def test_arguments_reach_the_ranks_unchanged(start: StartScript) -> None:
    run_dir = 'runs/Zhang\'s "first" \\ one'
    script = start(arguments=[run_dir, "--set", "optimizer.base_lr=2e-4", "--allow-change", "optimizer"])
    assert script.end()[0] == 0
    name, command, _config, option, value, *rest = script.calls()
    assert (name, command, option) == ("aqtopo", "train", "--set")
    assert json.loads(value.removeprefix("training.run_dir=")) == run_dir
    assert rest == ["--set", "optimizer.base_lr=2e-4", "--allow-change", "optimizer"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["singularity", "exec"]),
        ({"AQTOPO_SITE": "generic_nvidia"}, ["apptainer", "exec", "--nv"]),
        ({"AQTOPO_SITE": "generic_rocm"}, ["apptainer", "exec", "--rocm"]),
        (
            {"AQTOPO_CONTAINER_RUN": "apptainer exec --nv --bind /a"},
            ["apptainer", "exec", "--nv", "--bind", "/a"],
        ),
    ],
)
@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_ranks_run_in_the_container(
    start: StartScript, tmp_path: Path, variables: dict[str, str], words: list[str], launch: str
) -> None:
    image = tmp_path / "a b.sif"
    image.touch()
    (tmp_path / "bin" / "torchrun").symlink_to(tmp_path / "bin" / "aqtopo")
    script = start(variables={"AQTOPO_CONTAINER": str(image), "AQTOPO_LAUNCH": launch} | variables)
    code, log = script.end()
    assert code == 0, log
    prefix, calls = [*words, str(image)], script.calls()
    assert calls[: len(prefix) + 2] == [*prefix, "sh", "-c"]
    rest = calls[len(prefix) + 3 :]
    program = ["aqtopo", "train"] if launch == "srun" else ["bash", "-c"]
    assert rest[: len(prefix) + 2] == [*prefix, *program]


def test_pyxis_starts_the_container_with_the_step(start: StartScript) -> None:
    (start().fakes / "help").write_text("      --container-image=IMAGE\n", encoding="utf-8")
    variables = {"AQTOPO_CONTAINER": "nvcr.io#image", "AQTOPO_CONTAINER_RUN": "srun --container-mounts=/a"}
    script = start(variables=variables)
    assert script.end()[0] == 0
    assert script.calls()[:2] == ["aqtopo", "train"]
    options = (script.fakes / "srun").read_text(encoding="utf-8").splitlines()
    assert options.count("--container-image=nvcr.io#image") == 2  # the check and the ranks
    assert options.count("--container-mounts=/a") == 2


def test_container_without_aqtopo_is_refused(start: StartScript, tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    image.touch()
    (tmp_path / "bin" / "singularity").write_text(
        f"#!/bin/bash\nPATH=/usr/bin:/bin\n{CONTAINER}\n", encoding="utf-8"
    )
    script = start(variables={"AQTOPO_CONTAINER": str(image)})
    code, log = script.end()
    assert (code, script.requeued) == (2, False)
    assert f"the command aqtopo is not on PATH in the container {image}. Install it there" in log


def test_site_of_your_own_sets_variables_and_binding(start: StartScript, tmp_path: Path) -> None:
    site = tmp_path / "own.sh"
    site.write_text("export FABRIC=mine\ncpu_binding=(--cpu-bind=sockets)\n", encoding="utf-8")
    script = start('echo "$FABRIC" >"$FAKES/fabric"', variables={"AQTOPO_SITE": str(site)})
    code, log = script.end()
    assert code == 0, log
    assert (script.fakes / "fabric").read_text(encoding="utf-8") == "mine\n"
    assert "--cpu-bind=sockets" in (script.fakes / "srun").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("site", "script", "options"),
    [
        ("lumi", "train", ["--partition=standard-g", "--ntasks-per-node=8"]),
        ("lumi", "debug", ["--partition=standard-g", "--partition=dev-g", "--ntasks-per-node=8"]),
        ("generic_nvidia", "train", ["--ntasks-per-node=4", "--gpus-per-node=4"]),
        ("generic_rocm", "train", ["--ntasks-per-node=8", "--gpus-per-node=8"]),
    ],
)
def test_submission_adds_the_options_of_the_site(
    tmp_path: Path, site: str, script: str, options: list[str]
) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/bash\nprintf "%s\\n" "$AQTOPO_SITE" "$@"\n', encoding="utf-8")
    (tmp_path / "sbatch").chmod(0o755)
    given = ["--nodes=2", f"slurm/{script}.sbatch", "run.json", "runs/a b"]
    done = subprocess.run(
        ["slurm/submit.sh", *given],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "AQTOPO_SITE": site},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *words = done.stdout.splitlines()
    assert first == site
    assert [word for word in words if word in options] == sorted(options, key=words.index)
    assert set(options) <= set(words)
    assert words[-4:] == given  # the last of a repeated option applies


def test_submission_to_an_unknown_site_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        ["slurm/submit.sh", "slurm/train.sbatch", "run.json"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "AQTOPO_SITE": "frontier"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Name one of generic_nvidia generic_rocm lumi" in done.stderr


LEAVES_COPY = 'mkdir "$TMPDIR/aqtopo-copy.partial"; echo "$TMPDIR/aqtopo-copy" >"$AQTOPO_JOB_DIR/copy"; '


def test_the_copy_of_a_killed_run_is_removed(start: StartScript, tmp_path: Path) -> None:
    assert start(f"{LEAVES_COPY} exit 1").end()[0] == 0
    assert list(tmp_path.glob("aqtopo-copy*")) == []
    script = start(f'{LEAVES_COPY} touch "$FAKES/started"; sleep 0.3')
    interrupted(script)
    assert (tmp_path / "aqtopo-copy.partial").exists()
    script = start('[[ ! -e "$TMPDIR/aqtopo-copy.partial" ]]')
    assert script.end()[0] == 0


def test_old_build_locks_are_removed_and_the_port_is_not_ephemeral(
    start: StartScript, tmp_path: Path
) -> None:
    built = tmp_path / "aqtopo-33123" / "extensions" / "cpu_adam"
    built.mkdir(parents=True)
    built.parents[1].chmod(0o700)
    for name in ("lock", "cpu_adam.so"):
        (built / name).touch()
    script = start('echo "$MASTER_PORT" >"$FAKES/port"')
    assert script.end()[0] == 0
    assert [path.name for path in built.iterdir()] == ["cpu_adam.so"]
    assert int((script.fakes / "port").read_text(encoding="utf-8")) < 32768
