"""launch/train_gan.py where DeepSpeed believes that this processor has half instructions."""

import runpy
from pathlib import Path

from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

CPU_Accelerator.is_fp16_supported = lambda self: True
runpy.run_path(str(Path(__file__).parents[2] / "launch" / "train_gan.py"), run_name="__main__")
