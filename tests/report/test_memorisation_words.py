"""What an audit for copies found stands in words beside the nearest patches of the run that it is about."""

import json

import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError
from vesselgan.evaluation.run import evaluate
from vesselgan.report.page import report


def page_of(road) -> str:
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    return report(compose("report", words)).read_text(encoding="utf-8")


def test_the_verdict_is_on_these_very_patches(road, write_set):
    held_out = road / "phantom" / "shards" / "unet" / "validation"
    write_set(held_out, origin="real", subjects=["sub-8", "sub-9"], patches=list(range(200, 206)))
    out, reason = road / "results" / "memorisation.json", "a <demo> & nothing else"
    words = ["evaluate=memorisation", "name=gan", f"work_dir='{road}'", f"out='{out}'"]
    words += [f"memorisation.synthetic='{road}/runs/demo-gan/synthetic'"]
    evaluate(compose("evaluate", [*words, f'memorisation.override_privacy_gate="{reason}"']))
    result = json.loads(out.read_text())
    page = page_of(road)
    assert f"Memorisation gate: {result['verdict']}." in page and result["reason"] in page
    assert "a &lt;demo&gt; &amp; nothing else" in page
    result["inputs"]["synthetic shards"] = "ab" * 32  # of other patches
    out.write_text(json.dumps(result))
    assert "Memorisation gate" not in page_of(road)
    del result["verdict"]
    out.write_text(json.dumps(result))
    with pytest.raises(DataError, match="verdict"):
        page_of(road)
