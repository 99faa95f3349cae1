import pytest

from aqtopo.distributed.launch import Launch, read_launch

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}
DEEPSPEED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "MASTER_ADDR": "nid001",
}


def test_program_started_alone_is_rank_zero_of_one() -> None:
    assert read_launch({}) == Launch("alone", 0, 0, 1, 1, "127.0.0.1", 0)


def test_torchrun_and_deepspeed_variables_are_read() -> None:
    assert read_launch(TORCHRUN) == Launch("torch", 5, 1, 8, 4, "node0", 29400)
    assert read_launch(DEEPSPEED) == Launch("torch", 1, 1, 2, 2, "127.0.0.1", 29500)


def test_srun_variables_are_mapped_with_one_port_a_job() -> None:
    launch = read_launch(SRUN)
    assert launch == Launch("slurm", 9, 1, 16, 8, "nid001", 20000 + 123456 % 12000)
    assert read_launch(SRUN | {"MASTER_PORT": "1234"}).master_port == 1234


def test_uneven_srun_tasks_are_counted_on_this_very_node() -> None:
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NUM_TASKS": "3"}
    assert [read_launch(uneven | {"SLURM_NODEID": node}).local_size for node in "01"] == [2, 1]


def test_batch_shell_without_srun_is_alone() -> None:
    batch_shell = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}
    assert read_launch(batch_shell).size == 1


def test_torchrun_variables_win_inside_an_srun_task() -> None:
    assert read_launch(SRUN | TORCHRUN).launcher == "torch"


def test_incomplete_launcher_variables_are_named() -> None:
    with pytest.raises(ValueError, match="WORLD_SIZE, MASTER_PORT is not"):
        read_launch({key: TORCHRUN[key] for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR")})


def test_several_nodes_under_srun_need_an_address() -> None:
    with pytest.raises(ValueError, match=r"16 tasks on 2 nodes, but MASTER_ADDR is not set.*scontrol"):
        read_launch({key: value for key, value in SRUN.items() if key != "MASTER_ADDR"})


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK = 'x' is not a number"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "SLURM_STEP_NUM_TASKS = '' is not a number"),
    ],
)
def test_variable_that_is_no_number_is_named(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        read_launch(environ)
