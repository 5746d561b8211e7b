"""Draw synthetic, labelled patches from a trained GAN, as shards.

python launch/generate.py run=work/runs/sn_mp-1a2b3c4d num_patches=11750 seed=990 label_threshold=0.3
python launch/generate.py run=work/runs/sn_mp-1a2b3c4d num_patches=16 nifti=true out=work/look
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("generate", __doc__)
    from vesselgan.synthesis.generate import generate

    generate(command.config)


if __name__ == "__main__":
    exit_on_error(main)
