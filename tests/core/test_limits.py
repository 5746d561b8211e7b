"""Limits that would end a job later are named before its first step."""

import importlib.util
import resource
import tempfile

import pytest

from vesselgan.core import limits


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")


def test_this_machine_has_no_problem():
    assert limits.problems(uses_gpu=False) == []


@pytest.mark.parametrize(("length", "count"), [(75, 0), (76, 1)])
def test_sockets_must_fit_below_tmpdir(monkeypatch, length, count):
    # 107 bytes of a socket's path, 32 of them multiprocessing's.
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (length - 1))
    assert len(limits.problems(uses_gpu=False)) == count


@pytest.mark.parametrize(("limit", "count"), [(255, 1), (256, 0), (resource.RLIM_INFINITY, 0)])
def test_few_open_files_are_named(monkeypatch, limit, count):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, 4096))
    assert len(limits.problems(uses_gpu=False)) == count


@pytest.mark.parametrize(("devices", "count"), [("0,1", 0), ("", 0), ("GPU-8932f937-d72c", 1), ("MIG-1,MIG-2", 1)])
def test_devices_are_numbers_for_deepspeed(monkeypatch, devices, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert len(limits.problems(uses_gpu=True)) == count
    assert limits.problems(uses_gpu=False) == []
