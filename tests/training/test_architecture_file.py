"""The networks as the report draws them: every layer once, with the paper's number of parameters."""

from pathlib import Path

import pytest

from vesselgan.config.compose import compose
from vesselgan.report.training import layers_of, operations
from vesselgan.training.architecture import describe

VARIANTS = Path(__file__).parents[2] / "configs/variant"


@pytest.mark.parametrize(
    ("variant", "generator", "critic"), [("gp", 139_916_994, 4_780_353), ("c_sn_mp", 289_123_714, 18_850_433)]
)
def test_the_layers_have_table_2s_parameters(variant, generator, critic):
    # 145 M and 308 M in the paper's Table 2; the exact numbers are those of the authors' released code.
    players = describe(compose("train_gan", [f"variant={variant}"]).variant, (128, 128, 64))
    assert players["generator"]["parameters"] == generator and players["critic"]["parameters"] == critic
    for player in players.values():
        assert sum(layer["parameters"] for layer in player["layers"]) == player["parameters"]


@pytest.mark.parametrize("variant", sorted(path.stem for path in VARIANTS.glob("[!_]*.yaml")))
def test_the_report_draws_every_variants_networks(variant):
    for player in describe(compose("train_gan", [f"variant={variant}"]).variant, (32, 32, 16)).values():
        lines = [operations(layer) for layer in layers_of(player)]
        assert 5 <= len(lines) <= 6 and all(lines), "a layer that stands alone, or one that is missing"


def test_the_shapes_of_every_layer():
    players = describe(compose("train_gan", ["variant=sn"]).variant, (128, 128, 64))
    ups = [layer["shape"] for layer in players["generator"]["layers"] if layer["kind"] == "UpsampleConv3d"]
    assert ups == [[256, 32, 32, 16], [128, 64, 64, 32], [64, 128, 128, 64]]
    downs = [layer for layer in players["critic"]["layers"] if layer["kind"] == "Conv3d"]
    halved = [[64, 64, 64, 32], [128, 32, 32, 16], [256, 16, 16, 8], [512, 8, 8, 4]]
    assert [layer["shape"] for layer in downs] == halved
    assert all(layer["is_spectral"] and layer["stride"] == [2, 2, 2] for layer in downs)
    assert players["generator"]["output"] == [2, 128, 128, 64] and players["critic"]["output"] == [1]
    # By hand: 27 taps of 512 channels into 256, and 256 biases.
    assert players["generator"]["layers"][2]["parameters"] == 27 * 512 * 256 + 256
