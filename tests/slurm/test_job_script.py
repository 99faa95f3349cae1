"""What slurm/job.sh decides, with stand-ins for Slurm's commands and for `aqtopo`.

That Slurm itself says and does so is shown in test_batch.py.
"""

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

SRUN = 'while [[ $1 == --* ]]; do echo "$1" >>"$SAYS/srun"; shift; done; exec "$@"'
SQUEUE = (
    'case "$*" in *%l*) echo 10:00;; *restartcnt*) cat "$SAYS/restarts";; *%r*) cat "$SAYS/reason";; esac'
)
NOTED = 'printf "%s\\n" "$(basename "$0")" "$@" >>"$SAYS/calls"; '
COMMANDS = {
    "srun": SRUN,
    "squeue": SQUEUE,
    "scontrol": NOTED,
    "singularity": NOTED,
    "aqtopo": NOTED + 'eval "$RANK_DOES"',
}


@dataclass(frozen=True)
class Script:
    """A batch script that runs.

    Attributes:
        process: the shell.
        says: what the stand-ins read and note, and the log.
    """

    process: subprocess.Popen[bytes]
    says: Path

    def end(self) -> tuple[int, str]:
        """Wait; exit code and log."""
        code = self.process.wait(timeout=30)
        return code, (self.says / "log").read_text()

    def calls(self) -> list[str]:
        """Names and arguments of the commands that were called, one after the other."""
        noted = self.says / "calls"
        return noted.read_text().splitlines() if noted.exists() else []

    @property
    def queued_again(self) -> bool:
        """Whether it asked Slurm for that."""
        return "requeue" in self.calls()


StartScript = Callable[..., Script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartScript]:
    """`start(rank_does, arguments, variables)`: job.sh on one node, whose `aqtopo train` does that."""
    programs, says = tmp_path / "bin", tmp_path / "says"
    for folder in (programs, says):
        folder.mkdir()
    for name, text in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (says / "reason").write_text("None\n")
    (says / "restarts").write_text("0\n")
    config = tmp_path / "run.json"
    config.touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(
        rank_does: str = "true", arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> Script:
        (says / "calls").unlink(missing_ok=True)
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "33123",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS_PER_NODE": "2",
            "AQTOPO_JOBS": str(tmp_path / "jobs"),
            "TMPDIR": str(tmp_path),
            "RANK_DOES": rank_does,
            "SAYS": str(says),
        }
        with (says / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", str(ROOT / "slurm" / "job.sh"), str(config), *arguments],
                cwd=ROOT,
                env=environment | (variables or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return Script(process, says)

    yield start
    for process in started:  # and the ranks that a script has left
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fails(file: str, code: int = 1) -> str:
    return f'echo "{code} because of it" >"$AQTOPO_JOB_DIR/{file}"; exit {code}'


def test_what_a_user_must_put_right_ends_the_chain_with_the_rank_s_code(start: StartScript) -> None:
    script = start(fails("never", 3))
    code, log = script.end()
    assert code == 3
    assert "ended with code 3, and starting again would not help: because of it" in log
    assert not script.queued_again


def test_what_may_pass_is_tried_three_times(start: StartScript) -> None:
    for number in (1, 2):
        script = start(fails("failed"))
        code, log = script.end()
        assert (code, script.queued_again) == (0, True)
        assert f"failed with code 1: because of it\n{log.splitlines()[-1]}" in log
        assert f"({number} of 3 in a row without a new saved state)" in log
    script = start(fails("failed"))
    assert script.end()[0] == 1
    assert not script.queued_again


def test_a_saved_state_between_failures_starts_the_count_anew(start: StartScript) -> None:
    for _ in range(4):
        script = start('touch "$AQTOPO_JOB_DIR/saved"; ' + fails("failed"))
        assert "(1 of 3 in a row" in script.end()[1]
        assert script.queued_again


def test_failures_that_cannot_be_counted_end_the_chain(start: StartScript) -> None:
    script = start('ln -s /nowhere/failures "$AQTOPO_JOB_DIR/failures"; exit 7')
    code, log = script.end()
    assert "failures cannot be counted" in log
    assert (code, script.queued_again) == (7, False)


def test_a_full_disk_that_takes_no_reason_leaves_the_launcher_s_code(start: StartScript) -> None:
    assert start('touch "$AQTOPO_JOB_DIR/never"; exit 3').end()[0] == 3


def test_of_an_array_only_this_task_is_queued_again(start: StartScript) -> None:
    # Slurm gives the last task the id of the whole array.
    script = start("exit 1", variables={"SLURM_ARRAY_JOB_ID": "33123", "SLURM_ARRAY_TASK_ID": "4"})
    assert script.end()[0] == 0
    assert script.calls()[-3:] == ["scontrol", "requeue", "33123_4"]


def test_a_controller_that_does_not_answer_at_once_does_not_end_the_chain(
    start: StartScript, tmp_path: Path
) -> None:
    busy = '[[ -e $SAYS/asked ]] || { touch "$SAYS/asked"; echo "Socket timed out" >&2; exit 1; }'
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/bash\n{busy}\n{NOTED}\n")
    script = start("exit 1")
    assert (script.end()[0], script.queued_again) == (0, True)


def test_ranks_get_the_cores_that_the_job_has_for_each(start: StartScript) -> None:
    script = start(variables={"SLURM_CPUS_PER_TASK": "7"})
    assert script.end()[0] == 0
    assert "--cpus-per-task=7" in (script.says / "srun").read_text().splitlines()


def test_a_node_without_room_for_caches_may_be_better_next_time(start: StartScript) -> None:
    script = start(variables={"TMPDIR": "/proc"})
    code, log = script.end()
    assert "no caches could be made on some node" in log
    assert (code, script.queued_again) == (0, True)
    assert "train" not in script.calls()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AQTOPO_LAUNCH": "mpirun"}, "AQTOPO_LAUNCH=mpirun is none of srun, deepspeed, torchrun"),
        ({"SLURM_NTASKS_PER_NODE": ""}, "Submit with --ntasks-per-node"),
        ({"AQTOPO_LAUNCH": "deepspeed", "AQTOPO_CONTAINER": "a.sif"}, "cannot start ranks in a container"),
        ({"SLURM_JOB_ID": ""}, "this is no Slurm job"),
        ({"AQTOPO_JOBS": "/proc/jobs"}, "Name a shared disk in AQTOPO_JOBS"),
    ],
)
def test_bad_input_of_the_script_is_said_and_not_tried_again(
    start: StartScript, variables: dict[str, str], message: str
) -> None:
    script = start(variables=variables)
    code, log = script.end()
    assert code == 2
    assert message in log
    assert script.calls() == []


def test_a_forgotten_environment_is_said_at_once(start: StartScript, tmp_path: Path) -> None:
    (tmp_path / "bin" / "aqtopo").unlink()
    script = start(variables={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    code, log = script.end()
    assert (code, script.calls()) == (2, [])
    assert "there is no command aqtopo. Activate its environment before sbatch" in log


WAITS = 'touch "$SAYS/started"; trap "" TERM; sleep 60'
"""A rank that does not stop when it is told to."""


def interrupted(script: Script) -> tuple[int, str]:
    """Slurm's SIGTERM to the batch shell while the ranks are at work, and the end."""
    while not (script.says / "started").exists():
        time.sleep(0.01)
    script.process.send_signal(signal.SIGTERM)
    return script.end()


def test_ranks_that_are_too_slow_for_the_time_limit_do_not_end_the_chain(start: StartScript) -> None:
    script = start(f'touch "$AQTOPO_JOB_DIR/saved"; {WAITS} & wait', variables={"AQTOPO_LAST_WAIT_S": "0.2"})
    (script.says / "reason").write_text("TimeLimit\n")
    code, log = interrupted(script)
    assert "the time limit came before all ranks had stopped; queued again" in log
    assert (code, script.queued_again) == (0, True)


def test_a_job_that_slurm_has_queued_again_is_not_called_cancelled(start: StartScript) -> None:
    script = start('touch "$SAYS/started"; sleep 0.3')
    (script.says / "restarts").write_text("1\n")
    code, log = interrupted(script)
    assert "Slurm, which has queued the job again" in log
    assert "cancelled" not in log
    assert (code, script.queued_again) == (0, False)


def test_a_cancelled_job_stays_so_though_it_has_just_saved_for_the_time_limit(start: StartScript) -> None:
    script = start('echo saved >"$AQTOPO_JOB_DIR/again"; touch "$SAYS/started"; sleep 0.3')
    code, log = interrupted(script)
    assert "cancelled; not queued again" in log
    assert (code, script.queued_again) == (0, False)


def test_arguments_reach_the_ranks_as_they_are(start: StartScript) -> None:
    run_dir = 'runs/Zhang\'s "first" \\ one'
    script = start(arguments=[run_dir, "--set", "optimizer.base_lr=2e-4", "--allow-change", "optimizer"])
    assert script.end()[0] == 0
    name, command, _config, option, value, *rest = script.calls()
    assert (name, command, option) == ("aqtopo", "train", "--set")
    assert json.loads(value.removeprefix("training.run_dir=")) == run_dir
    assert rest == ["--set", "optimizer.base_lr=2e-4", "--allow-change", "optimizer"]


def test_ranks_run_in_the_container(start: StartScript) -> None:
    script = start(variables={"AQTOPO_CONTAINER": "/images/a b.sif"})
    assert script.end()[0] == 0
    assert script.calls()[:5] == ["singularity", "exec", "/images/a b.sif", "aqtopo", "train"]


def test_a_killed_start_s_build_locks_are_removed_and_the_port_is_one_of_the_job_s_own(
    start: StartScript, tmp_path: Path
) -> None:
    built = tmp_path / "aqtopo-33123" / "extensions" / "cpu_adam"
    built.mkdir(parents=True)
    for name in ("lock", "cpu_adam.so"):
        (built / name).touch()
    script = start('echo "$MASTER_PORT" >"$SAYS/port"')
    assert script.end()[0] == 0
    assert [path.name for path in built.iterdir()] == ["cpu_adam.so"]
    assert int((script.says / "port").read_text()) < 32768
