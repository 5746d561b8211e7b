"""Train the GAN.

    deepspeed launch/train_gan.py --deepspeed_config ds_fp16.json
    deepspeed --num_gpus 2 launch/train_gan.py --deepspeed_config ds_fp32.json variant=gp train.epochs=20
    deepspeed launch/train_gan.py --run_dir work/runs/sn_mp-1a2b3c4d variant=sn_mp     # resumes, if unfinished

Reads work/<cohort>/shards/gan/train (python -m data_prep.build_shards), writes a run directory under work/runs.
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("train_gan", __doc__)
    from vesselgan.training.run import train_gan

    train_gan(command)


if __name__ == "__main__":
    exit_on_error(main)
