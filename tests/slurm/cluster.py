"""A real Slurm cluster of two nodes on this host, for tests: munged, slurmctld and one slurmd a node.

Everything lives in one directory (key, socket, logs, spool) and on free ports, so that clusters of several
test runs do not meet. Written for Slurm 22.05, Debian 12's, and run as root: slurmd becomes a job's user.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "setpriv", "timeout")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.1
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""A plain `su` leaves out the folders of the daemons."""
INHERITED = (
    "PATH",
    "PYTHONPATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "TORCH_EXTENSIONS_DIR",
    "MPLCONFIGDIR",
)
"""Variables that daemons and jobs inherit: none of a launcher (RANK, SLURM_*, ...)."""

SLURM_CONF = """\
ClusterName=aqtopo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid

# No cgroups: in a container they cannot be written.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none

# Each node is this host and has two processors, whatever the host has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core

# Job ids start anywhere: aqtopo derives the port of a job's rank 0 from its id.
FirstJobId={first_job}
# A lost node, or the lost srun of a job, is noticed within half a minute; a node that comes back is used.
SlurmdTimeout=30
InactiveLimit=30
# On a loaded machine an answer may take its time.
MessageTimeout=30
ReturnToService=2

NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1_port} CPUs=2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2_port} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_unavailable() -> str | None:
    """Return why no cluster can be started here, with the remedy; None if one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root, for slurmd becomes the user of each job; run make test as root"
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not found; run scripts/install_debian_packages.sh as root"
    return None


class SlurmCluster:
    """A cluster in one directory; `running_cluster` starts and ends one.

    Attributes:
        directory: everything the cluster writes, logs included.
        environment: what a client (`srun`, `sbatch`, ...) must see to reach this cluster and no other.
        daemons: the processes by name: munged, slurmctld, node1, node2.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.environment["PATH"] = PATH
        self.environment["SLURM_CONF"] = str(directory / "slurm.conf")
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str | Path, timeout_s: float = 60, **variables: str) -> str:
        """Run a client, with environment variables of its own, and return its standard output.

        Raises:
            RuntimeError: it failed, or `timeout_s` were over (code 124).
        """
        words = ["timeout", "--kill-after=10", str(timeout_s), *map(str, command)]
        done = subprocess.run(
            words,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = f"{done.stdout}\n{done.stderr}\n{self.log_tails()}"
            raise RuntimeError(f"`{' '.join(words)}` exited with {done.returncode}\n{said}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Return the state of every node from `sinfo`: `idle`, `allocated`, `down*`, ..."""
        rows = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(row.split() for row in rows)

    def log_tails(self, lines: int = 10) -> str:
        """Return the last log lines of each daemon."""
        tails = []
        for path in sorted(self.directory.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            tails.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(tails)

    def start(self) -> None:
        """Start all daemons and wait until every node takes jobs.

        Raises:
            RuntimeError: a daemon ended or the nodes were not idle in time.
        """
        self._write_files()
        self._start_munged()
        self._start_daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start_daemon(node, "slurmd", "-D", "-N", node)
        self.wait_until_idle()

    @contextmanager
    def without_node(self, node: str) -> Iterator[None]:
        """End a node's slurmd, as if the node had died; afterwards the node is there again, and idle.

        Slurm would detect it after SlurmdTimeout; `scontrol update` has the same effect at once.
        """
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        try:
            yield
        finally:
            self._start_daemon(node, "slurmd", "-D", "-N", node)
            self._wait(f"{node} to be idle", lambda: self.node_states()[node] == "idle")

    def wait_until_idle(self) -> None:
        """Wait until every node takes jobs."""
        self._wait("all nodes to be idle", lambda: self.node_states() == dict.fromkeys(NODES, "idle"))

    def stop(self) -> None:
        """End the daemons, then the remaining processes."""
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in reversed(self.daemons.values()):
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(STOP_TIMEOUT_S)
        # Tasks and their slurmstepd have sessions of their own, but all see this cluster's configuration.
        while leftovers := _processes_with(f"SLURM_CONF={self.environment['SLURM_CONF']}"):
            for pid in leftovers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for daemon in self.daemons.values():
                daemon.poll()  # a child that nobody waits for would stay in the list as a zombie
            time.sleep(POLL_S)

    def _write_files(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller_port, node1_port, node2_port = _free_ports(3)
        text = SLURM_CONF.format(
            host=socket.gethostname().partition(".")[0],
            directory=self.directory,
            controller_port=controller_port,
            node1_port=node1_port,
            node2_port=node2_port,
            first_job=secrets.randbelow(10_000) + 1,
        )
        (self.directory / "slurm.conf").write_text(text, encoding="utf-8")

    def _start_munged(self) -> None:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.directory}/munge.{suffix}" for option, suffix in files.items()]
        # Force: a temporary directory is closed to others, and munged wants its socket open to all users.
        self._start_daemon("munged", "munged", "--foreground", "--force", *options)
        self._wait("munged's socket", (self.directory / "munge.socket").is_socket)

    def _start_daemon(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground; it gets SIGTERM if this process dies."""
        with (self.directory / f"{name}.log").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_so():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"{START_TIMEOUT_S} s are over"
                raise RuntimeError(f"while waiting for {what}: {why}\n{self.log_tails()}")
            time.sleep(POLL_S)


@contextmanager
def running_cluster(directory: Path) -> Iterator[SlurmCluster]:
    """Start a cluster in an empty directory; end all its processes afterwards, also after an error."""
    cluster = SlurmCluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    """Return different unused ports."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def _processes_with(variable: str) -> list[int]:
    """Return the ids of processes that were started with `NAME=value` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
