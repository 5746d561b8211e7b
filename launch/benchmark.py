"""Measure a ratio against the authors' way, the candidates round by round in one process; one line of JSON.

    acceptance whether the package works on this machine, and how fast: a page in out=DIR
    loader    one pair ready for the GAN: our shards against gzipped .npy files
    prepare   building shards on two ranks against one
    step      a training step: time, peak memory, TFLOP, share of the machine's matmul peak
    segment   a whole volume through the U-Net: windows in batches against one at a time
    metrics   bAVD against brute force; FID and PRD at the paper's size
    private   a private critic step against a plain one (variant=dpgan)
    machine   the rates of this machine, for plan's step times
    utility   what samples teach at equal compute: Dice of U-Nets over seconds of training, for each recipe
    scaling   plan's step times against those of training

python launch/benchmark.py target=acceptance parts=[correctness,speed] minutes=10 out=DIR   # or [science]
python launch/benchmark.py target=step variant=c_sn_mp                                   # on a GPU
python launch/benchmark.py target=step variant=sn variant.width=128 patch_shape=[64,64,32]  # on a CPU
python launch/benchmark.py target=loader out=work/benchmarks.jsonl
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("benchmark", __doc__)
    from vesselgan.tools.benchmark.run import benchmark

    benchmark(command.config)


if __name__ == "__main__":
    exit_on_error(main)
