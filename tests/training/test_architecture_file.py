"""The networks as the report draws them: every layer once, with the paper's number of parameters."""

from pathlib import Path

import pytest

from vesselgan.config.compose import compose
from vesselgan.report.training import layers_of, operations
from vesselgan.training.architecture import describe

VARIANTS = Path(__file__).parents[2] / "configs/variant"
NAMES = sorted(path.stem for path in VARIANTS.glob("[!_]*.yaml"))
SETTINGS = {name: compose("train_gan", [f"variant={name}"]).variant for name in NAMES}
CHAINS = [name for name, variant in SETTINGS.items() if variant.flow is None and variant.condition is None]


@pytest.mark.parametrize(
    ("variant", "generator", "critic"), [("gp", 139_916_994, 4_780_353), ("c_sn_mp", 289_123_714, 18_850_433)]
)
def test_the_layers_have_table_2s_parameters(variant, generator, critic):
    # 145 M and 308 M in the paper's Table 2; the exact numbers are those of the authors' released code.
    networks = describe(compose("train_gan", [f"variant={variant}"]).variant, (128, 128, 64))
    assert networks["generator"]["parameters"] == generator and networks["critic"]["parameters"] == critic
    for network in networks.values():
        assert sum(layer["parameters"] for layer in network["layers"]) == network["parameters"]


@pytest.mark.parametrize("variant", CHAINS)
def test_the_report_draws_every_variants_networks(variant):
    for network in describe(compose("train_gan", [f"variant={variant}"]).variant, (32, 32, 16)).values():
        lines = [operations(layer) for layer in layers_of(network)]
        assert 5 <= len(lines) <= 6 and all(lines), "a layer that stands alone, or one that is missing"


def test_the_shapes_of_every_layer():
    networks = describe(compose("train_gan", ["variant=sn"]).variant, (128, 128, 64))
    ups = [layer["shape"] for layer in networks["generator"]["layers"] if layer["kind"] == "UpsampleConv3d"]
    assert ups == [[256, 32, 32, 16], [128, 64, 64, 32], [64, 128, 128, 64]]
    downs = [layer for layer in networks["critic"]["layers"] if layer["kind"] == "Conv3d"]
    halved = [[64, 64, 64, 32], [128, 32, 32, 16], [256, 16, 16, 8], [512, 8, 8, 4]]
    assert [layer["shape"] for layer in downs] == halved
    assert all(layer["is_spectral"] and layer["stride"] == [2, 2, 2] for layer in downs)
    assert networks["generator"]["output"] == [2, 128, 128, 64] and networks["critic"]["output"] == [1]
    # By hand: 27 taps of 512 channels into 256, and 256 biases.
    assert networks["generator"]["layers"][2]["parameters"] == 27 * 512 * 256 + 256
