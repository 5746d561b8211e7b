"""The three ways to start ranks on two nodes of a real Slurm give the same run."""

import shlex
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
BIN = Path(sys.executable).parent
# One launcher per node, each starting that node's ranks; srun starts the ranks themselves.
LAUNCHERS = {
    "srun": [sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--nnodes=2", "--nproc_per_node=1", "--node_rank=$SLURM_NODEID"]
    + ["--master_addr=127.0.0.1", "--master_port=$PORT"],
    "deepspeed": [str(BIN / "deepspeed"), "--hostfile=$HOSTS", "--no_ssh", "--node_rank=$SLURM_NODEID"]
    + ["--master_addr=127.0.0.1", "--master_port=$PORT"],
}


def test_srun_torchrun_and_deepspeed_start_the_same_run(slurm, slurm_work_dir, repository, tmp_path):
    jobs = {}
    # The README's way to name the nodes.
    readme = (repository / "slurm" / "README.md").read_text()
    list_hosts = next(line.strip() for line in readme.splitlines() if line.endswith(">HOSTS"))
    list_hosts = list_hosts.replace("slots=4", "slots=1").replace(">HOSTS", '>"$HOSTS"')
    for place, (name, launcher) in enumerate(LAUNCHERS.items()):
        words = ["launch/train_gan.py", "--run_dir", str(tmp_path / name), f'work_dir="{slurm_work_dir}"', "variant=sn"]
        words += ["variant.width=8", "train.batch_size=4", "train.max_steps=2", "train.num_workers=0"]
        # Each task's own shell fills in which node it is on.
        command = " ".join([*launcher, *map(shlex.quote, [*words, "runtime.device=cpu"])])
        address = "export MASTER_ADDR=127.0.0.1\n" if name == "srun" else ""
        hosts = shlex.quote(str(tmp_path / f"{name}.hosts"))
        variables = f"{address}export DS_ACCELERATOR=cpu PORT={24000 + place} HOSTS={hosts}\n"
        script = tmp_path / f"{name}.sh"
        script.write_text(
            f"#!/bin/bash\n{variables}{list_hosts}\nsrun --wait=60 bash -c {shlex.quote('exec ' + command)}\n"
        )
        asked = ["--nodes=2", "--ntasks-per-node=1", "--mem-per-cpu=500M", "--time=10"]
        jobs[name] = slurm.submit(*asked, f"--output={tmp_path / name}.out", str(script), cwd=repository)
    weights = {}
    for name, job in jobs.items():
        state = slurm.wait(job)["JobState"]
        assert state == "COMPLETED", (tmp_path / f"{name}.out").read_text()
        folder = tmp_path / name / "checkpoints/step_00000002"
        weights[name] = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        assert "2 x cpu" in (tmp_path / f"{name}.out").read_text()
    assert len(weights["srun"]) > 3 and weights["torchrun"] == weights["deepspeed"] == weights["srun"]
