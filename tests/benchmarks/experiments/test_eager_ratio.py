"""visrt against its network in PyTorch: both sides do the whole work, and grid_sample computes the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from networks import HEIGHT, PUBLISHED_KIND, WIDTH, Exported, exported

from visrt.benchmarks.experiments.eager_ratio import SHOWS_TEN, Setting, Sides, compare, grid_sampled_sum, growth
from visrt.export.graphs import FrameGraph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.deformable import sampled_sum
from visrt.runtime.session import Session


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


def test_grid_sample_computes_what_the_networks_form_computes() -> None:
    torch.manual_seed(0)
    value, weights = torch.randn(2, 5, 7, 3, 4), torch.rand(2, 11, 3, 4)
    x, y = (torch.rand(2, 11, 3, 4) * size - 1.5 for size in (9, 7))
    assert torch.allclose(grid_sampled_sum(value, x, y, weights), sampled_sum(value, x, y, weights), atol=1e-5)


@pytest.fixture(scope="module")
def sides(network: Exported) -> Iterator[Sides]:
    checkpoint = load_checkpoint(network.checkpoint, MASK2FORMER)
    graph = FrameGraph.from_settings(checkpoint.network(), checkpoint.settings, network.wanted.input)
    setting = Setting(PUBLISHED_KIND, size=(HEIGHT, WIDTH), source=(120, 160), rounds=3, frames=2)
    with Session.open(network.folder, threads=1, association=SHOWS_TEN) as session:
        yield Sides(setting, graph, session)


def test_both_sides_show_ten_objects_and_every_part_has_its_ratio(sides: Sides) -> None:
    found = compare(sides)
    assert found["objects_a_frame"]["visrt"] >= 9, "of the ten, a mask may be empty"
    assert found["objects_a_frame"]["eager"] == found["objects_a_frame"]["grid_sample"] >= 9
    for peer in ("eager", "grid_sample"):
        assert set(found["frames_a_cpu_second_ratio"][peer]) == {"whole", "network", "post"}
    for ms in found["cpu_ms_a_frame"].values():
        assert 0 < ms["network"]["median"] < ms["whole"]["most"]
    assert 0 < found["post_share_of_visrt"]["median"] < 1


def test_memory_is_flat_beside_the_published_order(sides: Sides) -> None:
    found = growth(sides, network_frames=4, frames=10)
    assert found["scripted_peak_growth_mb"] < 20
    assert (found["frames"], found["scripted_frames"]) == (4, 10)
