"""The table of costs: the paper's rows as they stand there, ours from finished.json, and what is missing said."""

import csv
import io
import json

from vesselgan.report import table_2
from vesselgan.report.blocks import csv_text
from vesselgan.report.runs import read_run

FACTS = {
    "steps": 1700,
    "hours": 0.1234,
    "peak_gib_per_rank": 3.0,
    "reserved_gib_per_rank": 4.5,
    "ranks": 2,
    "device": "cuda",
    "device_name": "Some <GPU>",
    "parameters": {"generator": 139_916_994, "critic": 4_780_353},
    "patch_shape": [128, 128, 64],
    "batch_size": 4,
}


def made(folder, facts):
    folder.mkdir()
    if facts is not None:
        (folder / "finished.json").write_text(json.dumps(facts))
    return read_run(folder)


def test_a_run_stands_beside_table_2(tmp_path):
    table = list(csv.reader(io.StringIO(csv_text(table_2.table([made(tmp_path / "gp-run", FACTS)]).frame))))
    assert tuple(table[0]) == table_2.COLUMNS
    # 4.5 GiB are 4,608 of 2^20 bytes; the two networks have the paper's 144.697 million parameters.
    ours = ["gp-run", "Some <GPU>", "2", "128 x 128 x 64", "4", "1,700", "144.697", "4,608", "0.12"]
    assert table[1] == ours
    paper = {row[0]: (row[1], *row[-3:]) for row in table[2:]}
    assert paper["c-SN-MP (paper)"] == ("TITAN RTX", "308", "21,351", "192") and len(paper) == 4


def test_an_unfinished_run_says_so(tmp_path):
    young, *_ = table_2.rows([made(tmp_path / "young", None)])
    assert young[0].endswith("\nnot finished") and young[-1] == "-"
