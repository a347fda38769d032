"""The published architectures have the sizes and keys of the official files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from visrt.models.checkpoints.published import DATASET_CLASSES, PUBLISHED, ctvis, published
from visrt.models.mask2former import Mask2Former, NetworkSettings

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"

OFFICIAL = {
    "minvis_ytvis19_r50": published("r50", 40),
    "minvis_ovis_swinl": published("swin_l", 25),
    "ctvis_ytvis19_r50": ctvis(published("r50", 40)),
    "ctvis_ovis_swinl": ctvis(published("swin_l", 25)),
}


def shapeless(settings: NetworkSettings) -> Mask2Former:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return Mask2Former(settings)


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [
        ("minvis_ytvis19_r50", 43_959_977, 558),
        ("minvis_ovis_swinl", 215_507_854, 650),
        ("ctvis_ytvis19_r50", 44_157_353, 564),
        ("ctvis_ovis_swinl", 215_705_230, 656),
    ],
)
def test_official_numbers_of_parameters_and_entries(name: str, parameters: int, entries: int) -> None:
    network = shapeless(OFFICIAL[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    # One entry of the official files is a weight of their loss, criterion.empty_weight.
    assert len(network.state_dict()) + 1 == entries


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_keys_shapes_and_types(name: str) -> None:
    listed = REFERENCE / f"keys_{name}.tsv"
    if not listed.exists():
        pytest.skip(f"no {listed}")
    rows = [line.split("\t") for line in listed.read_text().splitlines() if not line.startswith("#")]
    official = {key: (shape, dtype, kind) for key, shape, dtype, kind in rows if not key.startswith("criterion.")}
    network = shapeless(OFFICIAL[name])
    parameters = dict(network.named_parameters())
    ours = {
        key: (str(tuple(value.shape)), str(value.dtype).removeprefix("torch."), kind_of(key, parameters))
        for key, value in network.state_dict().items()
    }
    assert ours == official


def kind_of(key: str, parameters: dict[str, torch.nn.Parameter]) -> str:
    return "param" if key in parameters else "buffer"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network_can_be_built(name: str) -> None:
    settings = published(name, 25)
    assert settings == replace(PUBLISHED[name], classes=25)
    assert shapeless(settings).sem_seg_head.predictor.class_embed.out_features == 26


def test_data_sets_have_their_numbers_of_distinct_classes() -> None:
    assert {name: len(set(classes)) for name, classes in DATASET_CLASSES.items()} == {
        "coco": 80,
        "ytvis2019": 40,
        "ytvis2021": 40,
        "ytvis2022": 40,
        "ovis": 25,
        "imagenet_vid": 30,
    }
