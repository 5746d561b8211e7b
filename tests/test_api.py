"""The public names: lazy, complete, and usable from a notebook."""

import subprocess
import sys

import pytest

import vesselgan


def test_importing_loads_nothing_heavy():
    code = "import sys, vesselgan; print([name for name in ('torch', 'numpy', 'h5py') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    for name in vesselgan.__all__:
        assert getattr(vesselgan, name) is getattr(vesselgan, name)
    assert set(dir(vesselgan)) == set(vesselgan.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        vesselgan.__getattr__("nothing")
