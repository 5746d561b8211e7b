"""The three ways to start ranks, on a real Slurm: they give the same run; what starts them wrongly is refused."""

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


def test_srun_torchrun_and_deepspeed_start_the_same_run_on_two_nodes(slurm, slurm_work_dir, repository, tmp_path):
    jobs = {}
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    for place, (name, launcher) in enumerate(LAUNCHERS.items()):
        words = ["launch/train_gan.py", "--run_dir", str(tmp_path / name), f'work_dir="{slurm_work_dir}"', "variant=sn"]
        words += ["variant.width=8", "train.batch_size=4", "train.max_steps=2", "train.num_workers=0"]
        # Each task's own shell fills in which node it is on.
        command = " ".join([*launcher, *map(shlex.quote, [*words, "runtime.device=cpu"])])
        address = "export MASTER_ADDR=127.0.0.1\n" if name == "srun" else ""
        variables = (
            f"{address}export DS_ACCELERATOR=cpu PORT={24000 + place} HOSTS={shlex.quote(str(tmp_path / 'hosts'))}\n"
        )
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/bash\n{variables}srun --wait=60 bash -c {shlex.quote('exec ' + command)}\n")
        asked = [
            "--nodes=2",
            "--ntasks-per-node=1",
            "--mem-per-cpu=500M",
            "--time=10",
            f"--output={tmp_path / name}.out",
        ]
        jobs[name] = slurm.submit(*asked, str(script), cwd=repository)
    weights = {}
    for name, job in jobs.items():
        state = slurm.wait(job)["JobState"]
        assert state == "COMPLETED", (tmp_path / f"{name}.out").read_text()
        folder = tmp_path / name / "checkpoints/step_00000002"
        weights[name] = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        assert "2 x cpu" in (tmp_path / f"{name}.out").read_text()
    assert len(weights["srun"]) > 3 and weights["torchrun"] == weights["deepspeed"] == weights["srun"]


def test_ranks_that_would_each_be_alone_are_refused(slurm, slurm_work_dir, repository, tmp_path):
    settings = ["data=phantom", f'work_dir="{tmp_path}"']
    train = ["launch/train_gan.py", "--run_dir", str(tmp_path / "run"), f'work_dir="{slurm_work_dir}"']
    starts = {
        "no-mpi": ["srun", sys.executable, "-m", "mpi4py", "-m", "data_prep.build_shards", *settings],
        "no-srun": [sys.executable, *train],
        "alone": ["srun", str(BIN / "torchrun"), "--standalone", "--nproc_per_node=1", *train],
    }
    said = {
        "no-mpi": "Slurm started 2 tasks (SLURM_STEP_NUM_TASKS) but MPI connects 1",
        "no-srun": "the job has 2 tasks, but this process was started without srun",
        "alone": "srun started torchrun 2 times but it knows of 1",
    }
    jobs = {}
    for name, words in starts.items():
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/bash\n{shlex.join(words)}\n")
        asked = ["--ntasks=2", "--mem-per-cpu=500M", "--time=10", f"--output={tmp_path / name}.out"]
        jobs[name] = slurm.submit(*asked, str(script), cwd=repository)
    for name, job in jobs.items():
        code = slurm.wait(job)["ExitCode"]
        output = (tmp_path / f"{name}.out").read_text()
        assert said[name] in output and code != "0:0", output
    assert not (tmp_path / "run").exists() and not (tmp_path / "phantom").exists()


def test_a_batch_script_of_two_tasks_may_prepare_data_alone_or_through_mpiexec(slurm, repository, tmp_path):
    prepare = [sys.executable, "-m", "mpi4py", "-m", "data_prep.make_phantom", "phantom.num_subjects=2"]
    prepare += ["phantom.shape=[32,32,16]", "phantom.spacing_mm=[4,4,6]"]
    script = tmp_path / "job.sh"
    starts = {"alone": prepare, "mpiexec": [str(BIN / "mpiexec"), "-n", "2", *prepare]}
    lines = [shlex.join([*words, f'work_dir="{tmp_path / name}"']) for name, words in starts.items()]
    script.write_text("#!/bin/bash\nset -e\n" + "\n".join(lines) + "\n")
    asked = ["--ntasks=2", "--mem-per-cpu=500M", "--time=10", f"--output={tmp_path}/out"]
    job = slurm.submit(*asked, str(script), cwd=repository)
    assert slurm.wait(job)["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    for name in starts:
        assert len(list((tmp_path / name).rglob("image.nii.gz"))) == 2
