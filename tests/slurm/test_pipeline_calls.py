"""What pipeline.sh does on each call, against programs of Slurm's names that only write down how they were called."""

import os
import subprocess
from pathlib import Path

import pytest

from vesselgan.config.compose import compose, parse, to_yaml
from vesselgan.workflow.study import steps

STUBS = {
    "sbatch": """
for word in "$@"; do [[ $word != --job-name=* ]] || name=${word#*=}; done
[ ! -e "$STUBS/refuse-$name" ] || { echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1; }
number=$(($(ls "$STUBS" | grep -c '^call-') + 41))
printf '%s\\n' "$@" >"$STUBS/call-$number"
echo "$number;cluster"
""",
    "squeue": """
[ ! -e "$STUBS/down" ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for word in "$@"; do [[ $word != --jobs=* ]] || jobs=${word#*=}; done
[ -z "${jobs:-}" ] || grep -qx "$jobs" "$STUBS/queue" ||
    { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
cat "$STUBS/queue"
""",
    "scontrol": 'echo "JobId=$4 JobState=TIMEOUT Reason=TimeLimit"\n',
    "sacct": "exit 0\n",
}


class Chain:
    """pipeline.sh with these programs on PATH and settings of its own."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.script, self.stubs = repository / "slurm/pipeline.sh", folder / "stubs"
        self.work, self.settings = folder / "a work $(touch x)", folder / "settings.sh"
        self.stubs.mkdir()
        (self.stubs / "queue").write_text("7\n")
        for name, text in STUBS.items():
            (self.stubs / name).write_text(f"#!/bin/bash\n{text}")
            (self.stubs / name).chmod(0o755)

    def call(self, *options: str, code: int = 0, **settings: str) -> str:
        """Call it; stdout and stderr together. A setting is what stands behind its = in the file."""
        lines = {"WORK": f"'{self.work}'", "VARIANTS": "(sn)", "SEEDS": "(1)"} | settings
        self.settings.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        path = f"{self.stubs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.script), *options, str(self.settings)],
            env=os.environ | {"PATH": path, "STUBS": str(self.stubs)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def submitted(self) -> dict[str, list[str]]:
        """Job number -> what sbatch was called with."""
        return {path.name[5:]: path.read_text().splitlines() for path in sorted(self.stubs.glob("call-*"))}

    def enter_queue(self, *jobs: str) -> None:
        (self.stubs / "queue").write_text("".join(f"{job}\n" for job in jobs))

    def finish(self, *products: str) -> None:
        for product in products:
            path = self.work / product
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def log(self, name: str) -> Path:
        path = self.work / "pipeline/paper/logs" / name
        path.write_text("")
        return path


COHORT = ["cohort.json", *(f"shards/{part}/manifest.json" for part in ("gan/train", "unet/train", "unet/validation"))]
COHORT = [f"pegasus/{name}" for name in COHORT]


@pytest.fixture
def chain(repository: Path, tmp_path: Path) -> Chain:
    return Chain(repository, tmp_path)


def option(words: list[str], name: str) -> str | None:
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"--{name}=")), None)


@pytest.mark.parametrize(("name", "value"), [("SEED", "(7)"), ("SEEDS", "1"), ("VARIANTS", "flow")])
def test_a_setting_that_changes_nothing_or_one_of_many_is_refused(chain, name, value):
    assert f"{name} is " in chain.call("--dry-run", code=2, **{name: value})
    assert "2 tasks" in chain.call("--dry-run", root="/data", PREPARE="(data.root=$root) SEEDS+=(2)")


def test_stages_follow_one_another_with_their_settings(chain):
    chain.call(VARIANTS="(sn 'dpgan variant.dp.noise_multiplier=0.5')", SEEDS="(1 2)", GAN="(train.max_steps=2)")
    jobs = chain.submitted()
    assert {job: option(words, "job-name") for job, words in jobs.items()} == {
        "41": "prepare", "42": "train_gan", "43": "study", "44": "report"
    }  # fmt: skip
    after = {job: option(words, "dependency") for job, words in jobs.items()}
    assert after == {"41": None, "42": "afterok:41", "43": "afterok:41:42", "44": "afterok:41:42:43"}
    assert {job: option(words, "array") for job, words in jobs.items()} == {
        "41": "0", "42": "0,1,2,3", "43": "0,1", "44": "0,1"
    }  # fmt: skip
    private = (Path(jobs["42"][-1]) / "1").read_text().splitlines()
    assert private[:2] == ["--run_dir", f"{chain.work}/runs/dpgan-noise_multiplier-0.5-seed-1"]
    assert private[2:] == [
        "variant=dpgan", f'work_dir="{chain.work}"', "data=pegasus", "train.max_steps=2",
        "variant.dp.noise_multiplier=0.5", "train.seed=1",
    ]  # fmt: skip
    study = parse("study", None, (Path(jobs["43"][-1]) / "1").read_text().splitlines()).config
    runs = [f"{chain.work}/runs/{name}-seed-2" for name in ("sn", "dpgan-noise_multiplier-0.5")]
    assert (study.name, study.runs, study.work_dir) == ("paper-seed-2", runs, str(chain.work))
    report = (Path(jobs["44"][-1]) / "1").read_text().splitlines()
    assert parse("report", None, report[1:]).config.results == f"{chain.work}/studies/paper-seed-2/results"


def test_what_is_there_is_not_made_again(chain):
    chain.finish(*COHORT, "runs/sn-seed-1/finished.json")
    said = chain.call(VARIANTS="(sn gp)")
    assert "prepare: finished (1)" in said and "train_gan: job 41, tasks 1 of 2\n" in said
    assert option(chain.submitted()["42"], "dependency") == "afterok:41"


def test_a_gan_that_is_named_twice_is_refused(chain):
    said = chain.call(code=2, VARIANTS="('dpgan variant.dp.noise_multiplier=1' 'dpgan variant.dp.noise_multiplier=1')")
    assert "dpgan-noise_multiplier-1-seed-1" in said
    assert chain.submitted() == {}


def test_image_scores_find_the_studys_patches(chain, monkeypatch):
    variants = ["sn", "dpgan variant.dp.noise_multiplier=1", "dpgan variant.dp.noise_multiplier=2"]
    quoted = " ".join(f"'{variant}'" for variant in variants)
    chain.call(VARIANTS=f"({quoted})", IMAGE="(image.weights=w.pth)")
    commands = (Path(chain.submitted()["44"][-1]) / "0").read_text().split("\n\n")
    settings = [parse("evaluate", None, command.splitlines()[1:]).config for command in commands[:-1]]
    runs = [chain.work / "runs" / name for name in ("sn-seed-1", "dpgan-noise_multiplier-1-seed-1")]
    runs.append(chain.work / "runs/dpgan-noise_multiplier-2-seed-1")
    for run in runs:
        chain.finish(f"runs/{run.name}/finished.json")
        (run / "config.yaml").write_text(to_yaml(compose("train_gan", [f"variant={run.name.split('-')[0]}"])))
    monkeypatch.setattr(steps, "check_trained_on", lambda run, training: None)  # nothing was trained here
    gans = steps.gans_of(compose("study", [steps.override("runs", list(map(str, runs)))]), [])
    home = chain.work / "studies/paper-seed-1"
    expected = [(gan.name, str(steps.synthetic_dir(home, gan)), "w.pth") for gan in gans]
    assert [(s.name, s.image.synthetic, s.image.weights) for s in settings] == expected
    assert [s.out for s in settings] == [f"{home}/results/image-{run.name}.json" for run in runs]


def test_a_refused_stage_ends_the_call(chain):
    (chain.stubs / "refuse-train_gan").touch()
    said = chain.call(code=2)
    assert "Invalid account" in said and "train_gan" in said
    assert [option(words, "job-name") for words in chain.submitted().values()] == ["prepare"]  # nothing without it
    assert not (chain.work / "pipeline/paper/train_gan.job").exists()
    chain.enter_queue("41")
    (chain.stubs / "refuse-train_gan").unlink()
    said = chain.call()
    assert "prepare: in the queue already, job 41" in said
    assert option(chain.submitted()["42"], "dependency") == "afterok:41"


def test_only_a_known_queue_lets_jobs_be_submitted(chain):
    chain.call("--until", "prepare")
    said = chain.call("--until", "prepare")
    assert "prepare: job 42, tasks 0 of 1" in said
    (chain.stubs / "down").touch()
    said = chain.call(code=6)
    chain.call("--dry-run")
    assert "Unable to contact slurm controller" in said and len(chain.submitted()) == 2


def test_a_queued_jobs_settings_stay(chain):
    chain.finish(*COHORT)
    chain.call()
    folder = Path(chain.submitted()["41"][-1])
    before = {path.name: path.read_text() for path in folder.iterdir()}
    chain.enter_queue("41", "43")
    said = chain.call(VARIANTS="(gp sn)")
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert "job 41" in said and "study" not in said and len(chain.submitted()) == 3
    assert "study: job 44" in chain.call()  # with the first settings it goes on


def test_a_newer_gan_has_its_study_repeated(chain):
    gan, study = "runs/sn-seed-1/finished.json", "studies/paper-seed-1/report/index.html"
    report = "report/paper-seed-1/index.html"
    chain.finish(*COHORT, gan, study, report)
    for age, product in enumerate((report, study, gan)):
        os.utime(chain.work / product, (1e9 - age,) * 2)
    assert [line.split(" (")[0] for line in chain.call().splitlines()] == [
        f"{stage}: finished" for stage in ("prepare", "train_gan", "study", "report")
    ]
    os.utime(chain.work / gan)
    said = chain.call("--dry-run")
    assert "train_gan: finished (1)" in said and "study: sbatch" in said and "report: sbatch" in said


def test_the_next_call_names_tasks_that_ended(chain):
    chain.finish(*COHORT)
    chain.call(VARIANTS="(sn gp sn_mp)")
    logs = [chain.log(f"train_gan-41_{task}.out") for task in (0, 1)]  # task 2 never began
    failures = chain.work / "pipeline/paper/failures"
    failures.mkdir()
    (failures / "41_0").write_text("error: stage train_gan failed (job 41_0, exit 5): see above\n")
    said = chain.call("--dry-run", VARIANTS="(sn gp sn_mp)")
    record = [line for line in said.splitlines() if line.startswith("last time: ")]
    assert record == [
        "last time: error: stage train_gan failed (job 41_0, exit 5): see above",
        f"last time: error: stage train_gan (job 41_1) ended as TIMEOUT, see {logs[1]}",
    ]
    assert failures.is_dir()
    chain.call(VARIANTS="(sn gp sn_mp)")
    assert not failures.exists()
    assert "last time" not in chain.call("--dry-run", VARIANTS="(sn gp sn_mp)")  # the new jobs have not begun


def test_a_dry_run_sums_hours_and_starts(chain):
    chain.finish(*COHORT)
    (chain.work / "pegasus/shards/gan/train/manifest.json").write_text(
        '{"patch_shape": [\n 16,\n 16], "count": 12, "subjects": {}}'
    )
    # 30.5 hours of one card; on two, 15.25 hours, so two starts of 10 hours for each of the two seeds.
    (chain.stubs / "plan").write_text(
        '#!/bin/bash\necho "$@" >>"$STUBS/asked"\n'
        """echo '{"hours_by_card": {"V100": 99.0, "A100": 30.5}, "share_of_peak": 0.1}'\n"""
    )
    (chain.stubs / "plan").chmod(0o755)
    said = chain.call(
        "--dry-run", CARD="A100", PYTHON=f"('{chain.stubs / 'plan'}')", SEEDS="(1 2)", GAN="(train.max_steps=2)",
        SBATCH_GAN="(--gres=gpu:a100:2 --time=10:00:00)", SBATCH_STUDY="(--time=1-12)", SBATCH_REPORT="(--gres=none)",
    )  # fmt: skip
    assert "train_gan: 2 tasks of 2 GPUs, limit 10:00:00: about 61.0 GPU-hours of A100, 4 starts\n" in said
    assert "study: 2 tasks of 1 GPU, limit 1-12: at most 72.0 GPU-hours at each start\n" in said
    assert "report: 2 tasks of 0 GPUs" in said and said.endswith("sum: 133.0 GPU-hours\n")
    (asked,) = (chain.stubs / "asked").read_text().splitlines()  # once for both seeds
    assert asked == "launch/plan.py variant=sn train.max_steps=2 patch_shape=[16,16] num_pairs=12 --json"
    assert chain.submitted() == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--gpus=4 --time=10:00:00", "of 4 GPUs, limit 10:00:00"),
        ("-N 2 -G a100:4 -t 5:00:00", "of 4 GPUs, limit 5:00:00"),
        ("-N2 --gpus-per-node=a100:4 --time 5:00:00", "of 8 GPUs, limit 5:00:00"),
        ("--nodes=2 --ntasks-per-node=4 --gpus-per-task=1 -t2:00:00", "of 8 GPUs, limit 2:00:00"),
        ("--gres=gpu --time=1:00:00", "of 1 GPU, limit 1:00:00"),
        ("--gres=gpu:2080ti --time=1:00:00", "of 1 GPU, limit 1:00:00"),
        ("--gres=lscratch:100,gpu:a100:4 --nodes=1-2 --time=1:00:00", "of 4 GPUs, limit 1:00:00"),
        ("--gres none --partition gpu --gpu-bind none --time=1:00:00", "of 0 GPUs, limit 1:00:00"),
        ("--gres=tmp:100G --time=1:00:00", "of 0 GPUs, limit 1:00:00"),
        ("-n 2 --gpus-per-task=2 --time=1:00:00", "of 4 GPUs, limit 1:00:00"),
    ],
)
def test_a_dry_run_reads_every_spelling_of_sbatch_options(chain, options, said):
    chain.finish(*COHORT)
    assert f"train_gan: 1 task {said}" in chain.call("--dry-run", CARD="", SBATCH_GAN=f"({options})")


@pytest.mark.parametrize("name", ["phantom", "pairs"])
def test_the_examples_are_commands_that_parse(chain, repository, name):
    example = (repository / f"slurm/{name}.settings").read_text()
    chain.settings = chain.stubs / "copy.settings"
    chain.settings.write_text(f"{example}\nWORK='{chain.work}' CARD=''\n")
    path = f"{chain.stubs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [str(chain.script), str(chain.settings)], env=os.environ | {"PATH": path, "STUBS": str(chain.stubs)}, check=True
    )
    commands = {"prepare": "build_shards", "train_gan": "train_gan", "study": "study"}
    for words in chain.submitted().values():
        if command := commands.get(str(option(words, "job-name"))):
            settings = (Path(words[-1]) / "0").read_text().splitlines()
            settings = settings[2:] if settings[0] == "--run_dir" else settings
            assert parse(command, None, settings).config.data.name == {"phantom": "phantom", "pairs": "mine"}[name]


@pytest.mark.parametrize(
    ("options", "said"), [(["--untli"], "--untli"), (["--until", "gan"], "--until gan"), (["no-such"], "no-such: ")]
)
def test_a_bad_option_is_exit_2(chain, options, said):
    assert said in chain.call(*options, code=2)
    words = [str(chain.script), "--until"]  # without its stage
    assert subprocess.run(words, capture_output=True, check=False).returncode == 2
    assert not chain.work.exists() and chain.submitted() == {}
