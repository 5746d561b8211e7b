"""The commands, one function each: the docstring is what `--help` says, the body the one call.

Those of data preparation read their own command line, on every MPI rank.
"""

from vesselgan.config.compose import Command

# An example under 120 columns stays on one line: commands are copied.


def train_gan(command: Command) -> None:
    """Train the GAN, on one GPU, several, or a CPU.

        deepspeed --module vesselgan train-gan --deepspeed_config ds_fp16.json
        deepspeed --num_gpus 2 --module vesselgan train-gan --deepspeed_config ds_fp32.json variant=gp train.epochs=20
        vesselgan train-gan --run_dir work/runs/sn_mp-1a2b3c4d variant=sn_mp   # one rank; resumes, if unfinished

    In a checkout `deepspeed launch/train_gan.py ...` is the same. Reads work/<cohort>/shards/gan/train (vesselgan
    build-shards), writes a run directory under work/runs. A file RUN/stop makes it save and end.
    """
    from vesselgan.training.run import train_gan

    train_gan(command)


def generate(command: Command) -> None:
    """Draw synthetic, labelled patches from a trained GAN or flow, as shards; or whole heads as NIfTI, on many ranks.

    vesselgan generate run=work/runs/sn_mp-1a2b3c4d num_patches=11750 seed=990 label_threshold=0.3
    vesselgan generate run=work/runs/sn_mp-1a2b3c4d num_patches=16 nifti=true out=work/look
    vesselgan generate run=work/runs/flow_label-1a2b3c4d volumes=10 shape=[312,384,127] out=work/heads
    """
    from vesselgan.synthesis.run import run

    run(command.config)


def train_unet(command: Command) -> None:
    """Train the segmentation U-Net on real, synthetic or both kinds of patches; chosen on the real validation patches.

    vesselgan train-unet data.source=real
    vesselgan train-unet data.source=synthetic synthetic=work/runs/sn_mp-1a2b3c4d/synthetic
    deepspeed --module vesselgan train-unet data.source=both synthetic=work/runs/sn_mp-1a2b3c4d/synthetic
    """
    from vesselgan.segmentation.train import train_unet

    train_unet(command)


def segment(command: Command) -> None:
    """Segment the vessels of whole volumes: NIfTI in, NIfTI out, same grid and number type; many volumes on many ranks.

    vesselgan segment run=work/runs/unet-real-1a2b3c4d input=my_images out=my_labels
    vesselgan segment run=work/runs/unet-real-1a2b3c4d split=test out=work/predictions/real
    deepspeed --module vesselgan segment run=work/runs/unet-real-1a2b3c4d input=my_images out=my_labels
    """
    from vesselgan.segmentation.predict import segment

    segment(command.config)


def evaluate(command: Command) -> None:
    """Score segmented volumes (Dice, bAVD), or synthetic patches against real ones (FID, PRD, labels).

        vesselgan evaluate evaluate=segmentation name=real predictions=work/predictions/real out=work/results/real.json
        vesselgan evaluate evaluate=threshold name=threshold out=work/results/threshold.json
        vesselgan evaluate evaluate=image name=sn_mp image.synthetic=work/runs/NAME/synthetic \\
            image.weights=resnet_10_23dataset.pth out=work/results/image-sn_mp.json
        vesselgan evaluate evaluate=label_threshold name=sn_mp labels.synthetic=work/runs/NAME/synthetic \\
            out=work/results/labels-sn_mp.json
    """
    from vesselgan.evaluation.run import evaluate

    evaluate(command.config)


def audit(command: Command) -> None:
    """Audit patches or heads before they leave: copies, membership, each patient. Exit 7 unless the verdict is `pass`.

    vesselgan audit run=work/runs/sn_mp-1a2b3c4d out=work/results/audit-sn_mp.json
    vesselgan audit synthetic=[work/a,work/b] name=both out=work/results/audit-both.json
    vesselgan audit synthetic=[work/heads] name=heads out=work/results/audit-heads.json
    """
    from vesselgan.evaluation.audit import audit

    audit(command.config)


def release(command: Command) -> None:
    """Release audited patches, and their generator, as one folder: BIDS and nnU-Net, cards, checksums, a ledger.

        vesselgan release name=first run=work/runs/sn_mp-1a2b3c4d audit=work/results/audit-sn_mp.json license=CC-BY-4.0
        vesselgan release name=pairs synthetic=[work/a,work/b] audit=work/results/audit-both.json
        vesselgan release withdraw=SUBJECT                        # what was made from somebody, and must go

    Exit 7 unless the audit's verdict is `pass` (reason="..." overrides it), and for any byte that names somebody.
    """
    from vesselgan.release.run import release

    release(command.config)


def study(command: Command) -> None:
    """Run the paper's comparison: U-Nets on real, on each GAN's patches and on both, on every test cohort.

        vesselgan study runs=[work/runs/a,work/runs/b] test_cohorts=[work/phantom_other] seeds=[1,2,3]
        vesselgan study study=sweep runs=[work/runs/a] sweep.checkpoints=[step_00001000,step_00002000]
        vesselgan study study=sweep sweep.variant=sn_mp sweep.learning_rates=[2e-4,4e-4] sweep.batch_sizes=[4,8]

    A sweep's learning rates are the critic's, or a flow's own; the generator's and Muon's keep their ratio to them.

    Started again it resumes. Results, tables and the report: work/studies/NAME.
    """
    from vesselgan.workflow.study.run import run

    run(command.config)


def report(command: Command) -> None:
    """Draw the tables and figures of all results as one page that opens offline.

    vesselgan report results=work/results runs=[work/runs/sn_mp-1a2b3c4d] out=work/report
    """
    from vesselgan.report.page import report

    report(command.config)


def plan(command: Command) -> None:
    """Show what a variant costs before a GPU is booked.

    vesselgan plan variant=c_sn_mp patch_shape=[128,128,64]
    vesselgan plan variant=sn_mp train.batch_size=8 ranks=[1,2,8] --json
    """
    from vesselgan.tools.plan import plan

    plan(command)


def doctor(command: Command) -> None:
    """Check this machine: GPU, precision, NCCL, MPI, HDF5, disk, locks. Exit 6 names what to fix.

    vesselgan doctor
    srun --nodes=4 --ntasks-per-node=1 vesselgan doctor work_dir=/scratch/work runtime.device=cuda
    """
    from vesselgan.tools.doctor import check_machine

    check_machine(command)


def status(command: Command) -> None:
    """Show how a run is doing: its last step, rate and checkpoint; healthy, stalled, stopped or finished.

    vesselgan status work/runs/sn_mp-1a2b3c4d
    vesselgan status work/runs/sn_mp-1a2b3c4d --json
    """
    from vesselgan.tools.status import status

    status(command)


def benchmark(command: Command) -> None:
    """Measure this machine: the training step beside the authors' code, loading, scaling; target=acceptance checks all.

    vesselgan benchmark target=acceptance parts=[correctness,speed] minutes=10 out=DIR   # or [science]; a page
    vesselgan benchmark target=step variant=c_sn_mp                                      # on a GPU
    vesselgan benchmark target=step variant=sn variant.width=128 patch_shape=[64,64,32]  # on a CPU
    vesselgan benchmark target=loader out=work/benchmarks.jsonl
    vesselgan benchmark target=utility seconds=[100,400]                                 # what samples teach

    Prints one line of JSON. Candidates that are compared take turns in one process.
    """
    from vesselgan.tools.benchmark.run import benchmark

    benchmark(command.config)


def demo(command: Command) -> None:
    """Run the whole pipeline on a small phantom cohort, from NIfTI to a Dice score and a report.

    vesselgan demo
    vesselgan demo work_dir=/scratch/demo
    """
    from vesselgan.workflow.demo import run

    run(command.config, command.overrides)


def make_phantom() -> None:
    """Write the phantom cohort: seeded full-head angiograms with vessel label and brain mask, as NIfTI; over MPI."""
    from data_prep.make_phantom import main

    main()


def check() -> None:
    """Check a cohort's headers and voxels before anything costs money, and show it on a page; over MPI."""
    from data_prep.check import main

    main()


def preprocess() -> None:
    """Denoise, correct, resample and mask a cohort's volumes, each step on request; over MPI."""
    from data_prep.preprocess import main

    main()


def build_shards() -> None:
    """Cut a cohort into verified shards of paired patches, split by subject; over MPI."""
    from data_prep.build_shards import main

    main()


PREPARATION = {"make_phantom": make_phantom, "check": check, "preprocess": preprocess, "build_shards": build_shards}
STAGES = {"train_gan": train_gan, "generate": generate, "train_unet": train_unet, "segment": segment}
STAGES |= {"evaluate": evaluate, "audit": audit, "release": release, "study": study, "report": report}
STAGES |= {"plan": plan, "doctor": doctor, "status": status, "benchmark": benchmark, "demo": demo}
