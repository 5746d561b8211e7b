"""One rank of the tests in this folder: python worker.py FOLDER, ranks by RANK and WORLD_SIZE.

FOLDER/plan.json says what to do, FOLDER/start_<norm>.safetensors where both networks start and on which patches;
results go to FOLDER/ranks_<size>/.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path

from safetensors.torch import load_file

from vesselgan.runtime import distributed


def main(folder: Path) -> None:
    world = distributed.start("cpu")
    plan = json.loads((folder / "plan.json").read_text())
    starts = {norm: load_file(folder / f"start_{norm}.safetensors") for norm in ("instance", "spectral")}
    out = folder / f"ranks_{world.size}"
    out.mkdir(exist_ok=True)
    here = Path(__file__).parent
    record = {}
    for module, cases in plan.items():
        run = runpy.run_path(str(here / f"{module}.py"))["run"]
        for name, case in cases.items():
            try:
                record[name] = run(case, starts[case["norm"]], world, out / name)
            except Exception:
                # The tests show it. Alone, the other cases go on; with peers, who wait for us, nothing can.
                record[name] = {"error": traceback.format_exc()}
                if world.size > 1:
                    raise
    (out / f"rank_{world.rank}.json").write_text(json.dumps(record))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
