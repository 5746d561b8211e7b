"""What an audit found stands at the head of the page, and beside the nearest patches of the run that it is about."""

import json

import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError
from vesselgan.evaluation.audit import audit
from vesselgan.report.page import report

from ..conftest import write_set


def page_of(road) -> str:
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    return report(compose("report", words)).read_text(encoding="utf-8")


def test_the_verdict_is_on_these_very_patches(road):
    held_out = road / "phantom" / "shards" / "unet" / "validation"
    write_set(held_out, range(200, 206), ["sub-8", "sub-9"])
    out, reason = road / "results" / "audit.json", "a <demo> & nothing else"
    words = [f"work_dir='{road}'", f"out='{out}'", f"synthetic=['{road}/runs/demo-gan/synthetic']", "name=gan"]
    audit(compose("audit", [*words, f'override_privacy_gate="{reason}"']))
    result = json.loads(out.read_text())
    page = page_of(road)
    assert result["verdict"] == "cannot conclude" and "Privacy audit: cannot conclude." in page
    assert page.count("6 synthetic patches") == 2 and "privacy audit: cannot conclude: " in page
    assert "a &lt;demo&gt; &amp; nothing else" in page
    one = result["synthetic"][0] | {"verdict": "pass", "sentence": "nothing was found"}
    other = one | {"name": "other", "verdict": "fail", "sentence": "40 of 40"}
    both = {"inputs": result["inputs"] | {"synthetic shards": ["cd" * 32, *result["inputs"]["synthetic shards"]]}}
    out.write_text(json.dumps(result | both | {"verdict": "fail", "synthetic": [other, one]}))
    page = page_of(road)
    assert page.count("privacy audit: pass: nothing was found") == 1 and "40 of 40" not in page
    result["inputs"]["synthetic shards"] = ["ab" * 32]  # of other patches
    out.write_text(json.dumps(result))
    assert "Privacy audit: " not in page_of(road)
    manifest = road / "runs" / "demo-gan" / "synthetic" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["extra"]["weights_sha256"] = result["synthetic"][0]["weights_sha256"] = "cd" * 32
    manifest.write_text(json.dumps(content))
    out.write_text(json.dumps(result))
    assert "(of other samples of this generator)" in page_of(road)
    for damaged in (result | {"synthetic": [7]}, {key: result[key] for key in result if key != "verdict"}):
        out.write_text(json.dumps(damaged))
        with pytest.raises(DataError, match="audit again"):
            page_of(road)
