"""Training on a real Slurm: several nodes, the end of the time, preemption, a stage that fails."""

import json
from pathlib import Path

import pytest

from vesselgan.tools.status import run_status

pytestmark = pytest.mark.soak
SMALL = ["variant=sn", "variant.width=8", "train.batch_size=4", "train.num_workers=0", "train.image_every=100000"]
SMALL += ["train.log_every=1", "train.checkpoint_every=100000", "runtime.device=cpu"]
ASKED = ["--gres=none", "--cpus-per-task=1", "--mem-per-cpu=500M", "--time=50"]
"""Of Slurm: what two virtual nodes have."""


@pytest.fixture
def job(slurm, slurm_work_dir, site, repository):
    """Submit the training template with these sbatch options and settings; (job number, run directory, its output)."""

    def submit(name: str, *settings: str, options: tuple[str, ...] = ()) -> tuple[str, Path, Path]:
        run_dir, output = slurm_work_dir / "runs" / name, slurm_work_dir / f"{name}.out"
        output.unlink(missing_ok=True)
        words = [*ASKED, *options, f"--output={output}", "slurm/train_gan.sbatch", "--run_dir", str(run_dir)]
        words += [f'work_dir="{slurm_work_dir}"', *SMALL, *settings]
        return slurm.submit(*words, cwd=repository, **site), run_dir, output

    return submit


def steps_told(run_dir: Path) -> list[int]:
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def sessions(run_dir: Path) -> list[dict]:
    path = run_dir / "sessions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def tensors(run_dir: Path, step: int) -> dict[str, bytes]:
    folder = run_dir / f"checkpoints/step_{step:08d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_requeues_end_in_the_same_bytes(slurm, job, repository, tmp_path):
    four = ("--nodes=2", "--ntasks-per-node=2", "--signal=B:USR1@120")
    number, run_dir, output = job("broken", "train.max_steps=100000", options=four)

    slurm.wait_until(lambda: len(steps_told(run_dir)) > 2, "three steps")
    facts = run_status(run_dir, stalled_minutes=10)
    assert facts["state"] == "healthy" and facts["step"] > 2 and f"job {number}" in facts["holder"]
    # A minute to two are left, so the signal is due, within the half minute of Slurm's clock; the rest is Slurm's.
    minutes = int(slurm.seconds_run(number) / 60) + 2
    slurm.call("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")
    slurm.wait_until(lambda: slurm.facts(number)["Restarts"] == "1", "the requeue at the time's end")
    slurm.call("scontrol", "update", f"JobId={number}", "TimeLimit=50")
    first_stop = json.loads((run_dir / "requeue").read_text())["step"]

    slurm.wait_until(lambda: steps_told(run_dir)[-1:] > [first_stop + 2], "three more steps")
    preempting = slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    slurm.wait_until(lambda: slurm.facts(number)["Restarts"] == "2", "the requeue by preemption")
    assert slurm.wait(preempting)["JobState"] == "COMPLETED"
    second_stop = json.loads((run_dir / "requeue").read_text())["step"]

    slurm.wait_until(lambda: len(sessions(run_dir)) == 3, "the third start")
    slurm.call("scancel", number)
    said = output.read_text()
    assert [session["step"] for session in sessions(run_dir)] == [0, first_stop, second_stop], said
    assert {session["ranks"] for session in sessions(run_dir)} == {4} and first_stop < second_stop
    assert all(f"start {start}, on n[1-2]" in said for start in (1, 2, 3))  # all in one file
    assert "error: stage" not in said

    number, unbroken, output = job("unbroken", f"train.max_steps={second_stop}", options=four)
    assert slurm.wait(number)["JobState"] == "COMPLETED", output.read_text()
    assert (unbroken / "finished.json").is_file() and len(sessions(unbroken)) == 1
    expected = tensors(unbroken, second_stop)
    assert len(expected) > 3 and tensors(run_dir, second_stop) == expected
    assert not (repository / "x").exists()  # what the shell would have made of the names


def test_a_failing_stage_is_not_queued_again(slurm, job):
    # A fake GPU is granted, and PyTorch sees none: exit 6. A setting is wrong: exit 2.
    granted, _, output = job("granted", "runtime.device=auto", options=("--gres=gpu:1",))
    wrong, _, _ = job("wrong", "train.max_steps=0")
    facts = [slurm.wait(number) for number in (granted, wrong)]
    assert [(fact["ExitCode"], fact["Restarts"]) for fact in facts] == [("6:0", "0"), ("2:0", "0")]
    assert f"error: stage train_gan failed (job {granted}, exit 6)" in output.read_text()
