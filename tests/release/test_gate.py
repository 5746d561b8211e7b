"""What opens the gate: an audit of exactly what leaves, and its verdict, or a reason in words."""

from dataclasses import replace

import pytest

from vesselgan.config import compose
from vesselgan.core.errors import DataError, PrivacyError, ResourceError, UsageError, exit_on_error
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, ShardSet, write_shard
from vesselgan.release import export
from vesselgan.release import run as module

from ..conftest import edit_json
from .conftest import attacked

FAILED = {"verdict": "fail", "sentence": "1 of 3 synthetic patches is a training patch."}


@pytest.fixture
def gan(work):
    return work.run("sn")


def left_behind(work):
    """What a refused release leaves in its folder."""
    root = work.path / "release"
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("verdict", ["fail", "cannot conclude"])
def test_a_closed_gate_exits_7(work, gan, verdict, capsys):
    audit = work.audit(gan, FAILED | {"verdict": verdict})
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: work.release("name=a", f"run={gan}", f"audit={audit}"))
    assert stopped.value.code == 7 and verdict in capsys.readouterr().err and left_behind(work) == []


def test_a_reason_opens_it_in_bold(work, gan):
    audit = work.audit(gan, FAILED)
    out = work.release("name=a", f"run={gan}", f"audit={audit}", 'reason="phantoms, shown to nobody"')
    card = (out / "README.md").read_text()
    assert "**Released although the audit did not pass. Reason: phantoms, shown to nobody**" in card
    assert "audit: **fail**: 1 of 3" in card and "Licence: none is set" in card
    with pytest.raises(UsageError, match="reason"):
        work.release("name=b", f"run={gan}", f"audit={audit}", 'reason=" "')


def test_an_audit_of_other_patches_exits_7(work, gan):
    other = work.run("sn", "other", seed=2)
    with pytest.raises(PrivacyError, match="audited other patches"):
        work.release("name=a", f"run={gan}", f"audit={work.audit(other)}", "reason=because")
    both = f"synthetic=[{RunDir(gan).synthetic},{RunDir(other).synthetic}]"
    with pytest.raises(PrivacyError, match="audited other patches"):
        work.release("name=a", both, f"audit={work.audit(other)}", "reason=because")


def test_another_generator_than_the_audited_exits_7(work, gan):
    other, audit = work.run("sn", "other", seed=2), work.audit(gan)
    words = [f"run={other}", f"synthetic=[{RunDir(gan).synthetic}]", f"audit={audit}", "reason=because"]
    with pytest.raises(PrivacyError, match="not what made"):
        work.release("name=a", *words)


def test_other_sampling_settings_than_the_audited_exit_7(work):
    """As a resume with an allowed change writes them."""
    flow = work.run("flow")
    audit = work.audit(flow, {"network": attacked(flow)})
    config = RunDir(flow).config("train_gan")
    config.variant.flow.guidance += 1.0
    (flow / "config.yaml").write_text(compose.to_yaml(config))
    with pytest.raises(PrivacyError, match="not what made"):
        work.release("name=a", f"run={flow}", f"audit={audit}", "reason=because")


def test_a_generator_whose_samples_had_noise_exits_7(work):
    """The audit compared noisy samples; the generator makes clean ones."""
    flow = work.run("flow")
    edit_json(RunDir(flow).synthetic / MANIFEST, lambda manifest: manifest["extra"].update(noise=[40.0, 60.0]))
    audit = work.audit(flow, {"network": attacked(flow)})
    with pytest.raises(PrivacyError, match="not what made"):
        work.release("name=a", f"run={flow}", f"audit={audit}", "reason=because")


@pytest.mark.parametrize("kind", ["flow", "gan_label"])
def test_a_generator_that_was_not_attacked_exits_7(work, kind):
    """One that sees patients' patches, or their labels."""
    flow = work.run(kind)
    with pytest.raises(PrivacyError, match="itself.*was not attacked"):
        work.release("name=a", f"run={flow}", f"audit={work.audit(flow)}")
    audit = work.audit(flow, {"network": attacked(flow, p=0.001)})
    with pytest.raises(PrivacyError, match="must not leave"):
        work.release("name=a", f"run={flow}", f"audit={audit}")
    out = work.release("name=a", f"synthetic=[{RunDir(flow).synthetic}]", f"audit={audit}")
    assert not (out / "generator").exists() and "## Generator" not in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["flow", "gan_label"])
def test_an_attack_on_other_weights_exits_7(work, kind):
    """A run of that name elsewhere; no reason lets it pass."""
    flow, other = work.run(kind), work.run(kind, "other", seed=7)
    audit = work.audit(flow, {"network": attacked(other) | {"run": kind}})
    with pytest.raises(PrivacyError, match="itself.*was not attacked"):
        work.release("name=a", f"run={flow}", f"audit={audit}", "reason=because")


def test_another_training_set_is_bad_data(work, gan):
    audit = work.audit(gan)
    edit_json(audit, lambda result: result["inputs"].update({"training shards": "ab" * 32}))
    with pytest.raises(DataError, match="training set"):
        work.release("name=a", f"run={gan}", f"audit={audit}")


def test_what_weights_learned_before_closes_the_gate(work, gan, tmp_path):
    """From a patient's data before the data changed, before `init_from`, or from what is not recorded."""
    manifest = RunDir(gan).synthetic / "manifest.json"
    for learned_from in (["ab" * 32], ["unknown"], None):
        edit_json(manifest, lambda content, more=learned_from: content["extra"].update(learned_from=more or []))
        if learned_from is None:
            edit_json(manifest, lambda content: content["extra"].pop("trained_on"))
        with pytest.raises(DataError, match="learned from|init_from"):
            work.release("name=a", f"run={gan}", f"audit={work.audit(gan)}", "reason=because")


def test_an_audit_by_another_rule_exits_7(work, gan):
    changes = [
        ("rule", lambda audit: audit["rule"].update(least_power=0.0)),
        ("count", lambda audit: audit["count"].update(training_people=1)),
        ("synthetic", lambda audit: audit["synthetic"][0].update(privacy={"epsilon": 1.0})),
    ]
    for named, change in changes:
        audit = work.audit(gan, {"synthetic": [{**ShardSet(RunDir(gan).synthetic).manifest.extra, "privacy": None}]})
        edit_json(RunDir(gan).synthetic / "manifest.json", lambda manifest: manifest["extra"].update(privacy=None))
        edit_json(audit, change)
        with pytest.raises(PrivacyError, match=named):
            work.release("name=a", f"run={gan}", f"audit={audit}", "reason=because")


def test_patients_mapped_anew_exit_7(work, gan):
    audit = work.audit(gan)
    swapped = {"sub-MUE1967": "KOW1971", "sub-KOW1971": "MUE1967"}
    edit_json(
        work.training / "manifest.json",
        lambda manifest: [entry.update(patient=swapped[name]) for name, entry in manifest["subjects"].items()],
    )
    with pytest.raises(PrivacyError, match="training patients"):
        work.release("name=a", f"run={gan}", f"audit={audit}", "reason=because")


@pytest.mark.parametrize("lost", ["verdict", "inputs", "planted", "count"])
def test_a_damaged_audit_is_bad_data(work, gan, lost):
    audit = work.audit(gan)
    for damage in (lambda result: result.update({lost: {}}), lambda result: result.pop(lost)):
        edit_json(audit, damage)
        with pytest.raises((DataError, PrivacyError)):
            work.release("name=a", f"run={gan}", f"audit={audit}")
    assert [name for name in left_behind(work) if name != "ledger.jsonl"] == []


def test_a_damaged_result_is_named_itself(work, gan):
    audit = work.audit(gan)
    (work.path / "results" / "image.json").write_text("{}")
    with pytest.raises(DataError, match=r"image\.json") as refused:
        work.release("name=a", f"run={gan}", f"audit={audit}")
    assert str(audit) not in str(refused.value)


def test_what_is_not_named_is_usage(work, gan):
    audit = work.audit(gan)
    for words, named in [
        (["name=a", f"run={gan}"], "audit=FILE"),
        (["name=a", f"audit={audit}"], "run=RUN"),
        (["name=a/b", f"run={gan}", f"audit={audit}"], "name=a/b"),
        (["name=a", f"synthetic=[{work.training}]", f"audit={audit}"], "real patches"),
        (["withdraw=x", "name=a"], "would change nothing"),
    ]:
        with pytest.raises(UsageError, match=named):
            work.release(*words)


def test_a_killed_release_leaves_nothing_finished(work, gan, monkeypatch):
    words = ["name=a", f"run={gan}", f"audit={work.audit(gan)}"]
    root = work.path / "release"
    with monkeypatch.context() as patched:
        # As by SIGKILL: nothing is cleaned up.
        patched.setattr(module.shutil, "rmtree", lambda *args, **options: None)
        patched.setattr(module, "_write_checksums", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            work.release(*words)
    assert left_behind(work) == ["a.partial"] and not (root / "a.partial" / "SHA256SUMS").exists()
    (root / "a.partial" / "stale.txt").write_text("left over")
    out = work.release(*words)
    assert left_behind(work) == ["a", "ledger.jsonl"] and not (out / "stale.txt").exists()


def test_the_ledger_knows_what_is_there(work, gan, monkeypatch):
    """Killed between ledger and folder: the ledger names it first, and the same command publishes it."""
    words = ["name=a", f"run={gan}", f"audit={work.audit(gan)}"]
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "rename", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            work.release(*words)
    assert left_behind(work) == ["a.partial", "ledger.jsonl"]
    assert work.release(*words).is_dir() and left_behind(work) == ["a", "ledger.jsonl"]


def test_a_repeated_command_changes_nothing(work, gan):
    words = ["name=a", f"run={gan}", f"audit={work.audit(gan)}"]
    out = work.release(*words)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert work.release(*words) == out and {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UsageError, match="choose another name"):
        work.release(*words, "license=MIT")
    unnamed = [work.release(*words[1:], *more) for more in ([], [], ["license=MIT"])]
    assert unnamed[0] == unnamed[1] != unnamed[2] and unnamed[0].name.startswith("synthetic-")


def test_two_releases_at_once_wait(work, gan, hold_lock):
    (work.path / "release").mkdir()
    hold_lock(work.path / "release" / "release.lock")
    with pytest.raises(ResourceError, match="releases"):
        work.release("name=a", f"run={gan}", f"audit={work.audit(gan)}")


def swap_for_patients_patches(work, run):
    """Real training patches where the synthetic ones lay, in a file of the same size."""
    made, real = ShardSet(RunDir(run).synthetic), ShardSet(work.training)
    records = [replace(record, image_XYZ=real.image(i), label_XYZ=real.label(i)) for i, record in enumerate(made)]
    made.close()
    write_shard(made.folder / "synthetic_00000.h5", records, patch_shape=made.patch_shape, origin="synthetic")


def test_patches_changed_after_the_audit_are_refused(work, gan, monkeypatch):
    words = ["name=a", f"run={gan}", f"audit={work.audit(gan)}"]
    write_pairs = export.write_pairs

    def swap_first(folder, sets):
        """After the first look at the bytes."""
        swap_for_patients_patches(work, gan)
        return write_pairs(folder, sets)

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_pairs", swap_first)
        with pytest.raises(DataError, match=r"synthetic_00000\.h5"):
            work.release(*words)
    with pytest.raises(DataError, match=r"synthetic_00000\.h5"):
        work.release(*words)
    assert left_behind(work) == []
