"""What the batch scripts do around the work: how a job that ends short of it tells its stage, and what is queued again.

srun and scontrol are stand-ins, and so is Python where what it does would take long.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLEEPS = "trap 'exit 143' TERM\n: >\"$STUBS/begun\"\nwhile :; do sleep 0.05; done\n"


class Job:
    """A template as Slurm starts it, the first task of array job 5; `python` is what stands for Python."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository, self.stubs, self.failure = repository, folder, folder / "failures/5_0"
        (folder / "tasks").mkdir()
        (folder / "tasks/0").write_text("generate\nrun=a\n")
        self.site = folder / "site.sh"
        self.site.write_text(f"PYTHON=('{folder}/python') MPI=pmi2\n")
        self.stub("srun", 'while [[ $1 = --* ]]; do shift; done\nexec "$@"\n')
        self.stub("scontrol", 'echo "$@" >"$STUBS/asked"\n')
        self.stub("python", "exit 0\n")

    def stub(self, name: str, text: str) -> None:
        (self.stubs / name).write_text(f"#!/bin/bash\n{text}")
        (self.stubs / name).chmod(0o755)

    def start(self, template: str, **settings: str) -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{self.stubs}{os.pathsep}{os.environ['PATH']}",
            "STUBS": str(self.stubs),
            "SLURM_SUBMIT_DIR": str(self.repository),
            "SLURM_JOB_ID": "6",
            "SLURM_ARRAY_JOB_ID": "5",
            "SLURM_ARRAY_TASK_ID": "0",
            "SLURM_JOB_NAME": "stage",
            "VESSELGAN_SITE": str(self.site),
            "VESSELGAN_FAILURES": str(self.failure.parent),
        }
        words = ["bash", f"slurm/{template}.sbatch", "--tasks", str(self.stubs / "tasks")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=self.repository, env=os.environ | variables | settings, **pipes)

    def run(self, template: str, **settings: str) -> tuple[int, str]:
        process = self.start(template, **settings)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def stop(self, process: subprocess.Popen[str], number: int) -> tuple[int, str]:
        """Send the batch shell a signal once the work has begun."""
        until = time.monotonic() + 30
        while not (self.stubs / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Job:
    return Job(repository, tmp_path)


def test_success_forgets_an_earlier_failure(job):
    job.failure.parent.mkdir()
    job.failure.write_text("error: stage stage failed (job 5_0, exit 143): preempted\n")
    assert job.run("evaluate")[0] == 0
    assert not job.failure.exists()


@pytest.mark.parametrize("template", ["prepare", "train_gan", "evaluate", "study"])
def test_a_missing_site_file_is_exit_2(job, template):
    code, output = job.run(template, VESSELGAN_SITE="slurm/sitte.sh")
    assert code == 2 and "VESSELGAN_SITE=slurm/sitte.sh" in output
    assert job.failure.read_text() == output


def test_a_failure_before_the_work_is_named(job):
    job.site.write_text("module load no-such-module\n")
    assert job.run("evaluate")[0] == 127
    assert f"(job 5_0, exit 127): the site's settings, {job.site}" in job.failure.read_text()
    job.site.write_text("PYTHON=(true)\n")
    assert job.run("evaluate", SLURM_ARRAY_TASK_ID="9")[0] == 2
    assert f"{job.stubs}/tasks/9: no such task" in (job.failure.parent / "5_9").read_text()
    code, output = job.run("prepare")  # a site that does not say what the template needs
    assert code == 1 and "MPI: unbound variable" in output


def test_a_failing_command_gives_its_stage_its_code(job):
    job.stub("python", "exit 3\n")
    for template, script in (("evaluate", "vesselgan generate"), ("study", "vesselgan study")):
        assert job.run(template)[0] == 3
        assert f"(job 5_0, exit 3): {script}" in job.failure.read_text()


def test_a_stage_out_of_time_is_named(job):
    job.stub("srun", ': >"$STUBS/begun"\nsleep 1\n')
    code, output = job.stop(job.start("evaluate"), signal.SIGTERM)
    assert code == 143 and "ended by SIGTERM" in output and "exit 143" in job.failure.read_text()


def test_a_stopped_study_is_requeued_unless_cancelled(job):
    job.stub("python", SLEEPS)
    code, _ = job.stop(job.start("study"), signal.SIGUSR1)
    assert (code, (job.stubs / "asked").read_text()) == (0, "requeue 6\n")
    assert not job.failure.exists()
    (job.stubs / "asked").unlink()
    (job.stubs / "begun").unlink()
    assert job.stop(job.start("study"), signal.SIGTERM)[0] == 143
    assert "SIGTERM" in job.failure.read_text() and not (job.stubs / "asked").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_saved_run_is_requeued_unless_cancelled(job, number):
    # scancel sends SIGTERM alone; a job that is queued again at that would not let itself be cancelled.
    run_dir = job.stubs / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").touch()
    (job.stubs / "tasks/0").write_text(f"--run_dir\n{run_dir}\n")
    job.stub("python", ': >"$STUBS/begun"\nwhile [ ! -e "$5/stop" ]; do sleep 0.05; done\n: >"$5/requeue"\n')
    code, _ = job.stop(job.start("train_gan"), number)
    if number == signal.SIGUSR1:
        assert (code, (job.stubs / "asked").read_text()) == (0, "requeue 6\n")
        assert not job.failure.exists()
        job.stub("scontrol", "exit 1\n")  # as in a container that holds no Slurm
        (job.stubs / "begun").unlink()
        code, output = job.stop(job.start("train_gan"), number)
        assert code == 75 and f"{run_dir} is saved" in output
    else:
        assert code == 143 and not (job.stubs / "asked").exists()
        assert f"{run_dir} is saved; ended by SIGTERM" in job.failure.read_text()


def test_slurm_may_end_scontrol_before_it_answers(job):
    """A busy one ends all of a job that it queues again, while scontrol still waits."""
    job.stub("python", SLEEPS)
    job.stub("scontrol", 'echo "$@" >"$STUBS/asked"\nkill -TERM $$\n')
    code, output = job.stop(job.start("study"), signal.SIGUSR1)
    assert code == 0 and "is queued again" in output and not job.failure.exists()


def test_a_study_is_requeued_at_most_100_times(job):
    job.stub("python", SLEEPS)
    code, output = job.stop(job.start("study", SLURM_RESTART_COUNT="100"), signal.SIGUSR1)
    assert code == 75 and "100 times" in output and not (job.stubs / "asked").exists()


def test_a_study_that_ended_is_not_requeued(job):
    job.stub("python", "trap 'exit 0' TERM\n: >\"$STUBS/begun\"\nwhile :; do sleep 0.05; done\n")
    code, output = job.stop(job.start("study"), signal.SIGUSR1)
    assert code == 0 and "queued again" not in output


def test_the_checkouts_own_package_is_what_runs(job):
    job.stub("python", 'echo "path $PYTHONPATH"\n')
    assert f"path {job.repository}:/else\n" in job.run("evaluate", PYTHONPATH="/else")[1]
