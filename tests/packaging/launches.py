"""One call of each launch script, as the tests of the scripts make it."""

SECRET = "0123456789secret"


def ssh(*rest: str) -> tuple[str, ...]:
    options = ("--hosts", "hosts", "--bind", "10.0.0.1", "--pause", "0", *rest)
    return ("launch_ssh.sh", *options, "run.toml", "train.epochs=2")


TORCHRUN = ("launch_torchrun.sh", "--workers", "2", "run.toml", "train.epochs=2")
SLURM = ("launch_slurm.sh", "--bind", "10.0.0.1", "--pause", "0", "run.toml", "train.epochs=2")
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURMD_NODENAME": "node1"}
LAUNCHES = {
    "ssh": (ssh(), {"BIGGRAPH_SECRET": SECRET}, 3),
    "torchrun": (TORCHRUN, {"BIGGRAPH_SECRET": SECRET}, 2),
    "slurm": (SLURM, JOB, 2),
}
