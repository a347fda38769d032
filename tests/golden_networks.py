"""The networks of the golden sets in torch, run over whole videos, and how far rounding may take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from golden import Golden, tight
from numpy.typing import NDArray
from torch import Tensor

from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.eomt import EOMT
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.condinst import dynamic_masks
from visrt.models.eomt import Eomt
from visrt.models.genvis import GenVis, read_memory
from visrt.models.inspro import InsPro, Pairs
from visrt.models.mask2former import Mask2Former
from visrt.models.videomt import VideoMt
from visrt.runtime.parity.check import ParityReport

INPUT_NOISE = 1e-7
NOISY_RUNS = 3
ROUNDINGS = 10
"""The noise is one rounding, of the input. The network rounds after each of its some hundred operations, whose errors
add up as a random walk does: to ten times one rounding."""

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Run:
    """A recurrent network's arrays over a video, by the names of the set, and what rounding explains.

    bounds: how far each array may be off. chance_bound: how far the chance of a class may be. mask_share: the share of
    mask cells that may be on the other side of zero.
    """

    arrays: Arrays
    bounds: dict[str, float]
    chance_bound: float
    mask_share: float


def bounded_run(compute: Callable[[list[Tensor]], tuple[Arrays, Arrays]], images: list[Tensor]) -> Run:
    """Arrays and class probabilities that `compute` makes of `images`, and bounds for them.

    A recurrent network may amplify rounding, by how much depends on its weights. So it runs again on images with a
    relative noise of 1e-7, which is float32's rounding: an array may be off by what one stage may, and by `ROUNDINGS`
    times the most that the noise moved it.
    """
    arrays, probabilities = compute(images)
    moved = dict.fromkeys([*arrays, *probabilities], 0.0)
    flipped = 0.0
    for seed in range(NOISY_RUNS):
        noise = torch.Generator().manual_seed(seed)
        noisy = compute([one * (1 + INPUT_NOISE * torch.randn(one.shape, generator=noise)) for one in images])
        for now, before in zip(noisy, (arrays, probabilities), strict=True):
            for name, values in before.items():
                moved[name] = max(moved[name], float(np.abs(now[name] - values).max(initial=0)))
        masks = [name for name in arrays if "mask_logits" in name]
        flips = sum(np.count_nonzero((noisy[0][name] > 0) != (arrays[name] > 0)) for name in masks)
        flipped = max(flipped, flips / sum(arrays[name].size for name in masks))
    bounds = {name: tight(values) + ROUNDINGS * moved[name] for name, values in {**arrays, **probabilities}.items()}
    chance_bound = max(bounds[name] for name in probabilities)
    return Run(arrays, bounds, chance_bound, 1e-4 + ROUNDINGS * flipped)


def official_file(golden: Golden, folder: Path) -> Path:
    """The checkpoint inside a set, written in the form of the official ones."""
    path = folder / "official.pth"
    weights = {name[3:]: torch.from_numpy(array) for name, array in golden.arrays.items() if name.startswith("sd/")}
    torch.save({"model": weights}, path)
    return path


@cache
def mask2former(golden: Golden) -> Mask2Former:
    """The network of a MinVIS or CTVIS set."""
    classes = golden["pred_logits"].shape[-1] - 1
    return load_checkpoint(golden.weights_file, MASK2FORMER, expected_classes=classes).network()


@cache
def videomt(golden: Golden) -> VideoMt:
    unread = {"heads": golden.config["heads"], "norm_queries": golden.config["norm_queries"]}
    return load_checkpoint(golden.weights_file, VIDEOMT, settings=unread).network()


@cache
def eomt(golden: Golden) -> Eomt:
    return load_checkpoint(golden.weights_file, EOMT, settings={"heads": golden.config["heads"]}).network()


def genvis_file(golden: Golden, folder: Path) -> Path:
    """A checkpoint of a GenVIS set: the official one, or where its two parts differ in heads, which no weight shows,
    visrt's own.
    """
    path, heads = official_file(golden, folder), golden.config["nheads_vita"]
    checkpoint = load_checkpoint(path, GENVIS)
    if heads == checkpoint.settings.heads:
        return path
    network = replace(checkpoint, settings=replace(checkpoint.settings, heads=heads)).network()
    save_checkpoint(network, folder / "own.safetensors", [str(k) for k in range(network.settings.classes)])
    return folder / "own.safetensors"


@cache
def genvis(golden: Golden) -> GenVis:
    with TemporaryDirectory() as folder:
        return load_checkpoint(genvis_file(golden, Path(folder)), GENVIS).network()


def inspro_unread(golden: Golden) -> dict[str, Any]:
    """Settings of an InsPro set's network that its weights do not show."""
    config = golden.config
    return {
        "heads": config["sparsercnn"]["NHEADS"],
        "bank_frames": config["bank_T"],
        "mask_scale_px": config["rel_coord_div"],
    }


@cache
def inspro(golden: Golden) -> InsPro:
    with TemporaryDirectory() as folder:
        path = official_file(golden, Path(folder))
        return load_checkpoint(path, INSPRO, settings=inspro_unread(golden)).network()


def key_every(golden: Golden) -> int:
    """Every so many frames of an InsPro set is a key frame."""
    return int(golden.config["lite_K"]) or 1


def bundle_of(export: Export) -> Path:
    """The bundle of a recurrent golden network, compared by the test alone.

    The exporter's own comparison has one tolerance for all networks; random weights may amplify rounding beyond it. The
    test takes its bound from a second run with noise (`bounded_run`).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParityReport, "require", lambda report, what: None)
        return export_bundle(export).folder


def network_inputs(golden: Golden, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The resized frames, normalised, then padded with zeros: [T, 3, H, W]."""
    resized = torch.from_numpy(golden.resized).float()
    normalised = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    height, width = golden.input_size
    images = torch.zeros(*resized.shape[:2], height, width)
    images[..., : resized.shape[2], : resized.shape[3]] = normalised
    return images


@cache
def genvis_run(golden: Golden) -> Run:
    """All clips of a GenVIS set, each from what the network made of those before."""
    settings = genvis(golden).settings.frame
    images = network_inputs(golden, settings.pixel_mean, settings.pixel_std)
    clips = list(images.split(int(golden.config["len_clip_window"])))
    names = golden.parts("clip")
    return bounded_run(lambda noisy: _genvis_arrays(genvis(golden), names, noisy), clips)


@torch.inference_mode()
def _genvis_arrays(network: GenVis, names: dict[int, str], clips: list[Tensor]) -> tuple[Arrays, Arrays]:
    start, vita = network.first_start(), network.vita_module
    keys: list[Tensor] = []
    values: list[Tensor] = []
    arrays: Arrays = {}
    probabilities: Arrays = {}
    for i, images in enumerate(clips):
        frames = network(images)
        read_out = read_memory(start.key[None], keys, values)[0]
        outputs = network.clips(frames.frame_queries[None], (start.base + read_out)[None])
        start = vita.next_start(outputs.prototypes[0])
        key, value = vita.memory_entry(outputs.prototypes)
        keys.append(key)
        values.append(value)
        made = {
            "pred_logits": outputs.class_logits,
            "pred_mask_embed": outputs.mask_embeddings,
            "prototypes_out": outputs.prototypes,
            "memory_k_new": key,
            "memory_v_new": value,
            "mask_logits_stride4_all_queries": torch.einsum(
                "sd,tdhw->sthw", outputs.mask_embeddings[0], frames.mask_features
            ),
        }
        arrays |= {names.get(i, f"clip{i}/") + name: tensor.numpy() for name, tensor in made.items()}
        probabilities[f"probabilities of clip {i}"] = outputs.class_logits.softmax(-1).numpy()
    return arrays, probabilities


@cache
def inspro_run(golden: Golden) -> Run:
    """All frames of an InsPro set, each from what the network made of those before."""
    settings = inspro(golden).settings
    images = list(network_inputs(golden, settings.pixel_mean, settings.pixel_std).split(1))
    return bounded_run(lambda noisy: _inspro_arrays(golden, noisy), images)


@torch.inference_mode()
def _inspro_arrays(golden: Golden, images: list[Tensor]) -> tuple[Arrays, Arrays]:
    network, settings = inspro(golden), inspro(golden).settings
    names = golden.parts("frame")
    sizes = torch.tensor([golden.valid_size], dtype=torch.int32)
    first = network.first_pairs()
    pairs = Pairs(first.queries[None], first.proposals[None])
    slots, dim = pairs.queries.shape[1:]
    bank = torch.zeros(1, slots, 0, dim)
    arrays: Arrays = {}
    probabilities: Arrays = {}
    for t, image in enumerate(images):
        frame, key = names.get(t, f"frame{t}/"), t % key_every(golden) == 0
        maps = network(image)
        stages = (network.stages if key else network.lite)(maps.pyramid, pairs, sizes)
        last, queries = stages[-1], pairs.queries
        if key:
            queries = network.next_queries(last.object_features, bank, torch.ones(bank.shape[:3], dtype=torch.bool))
            bank = torch.cat((bank, last.object_features.unsqueeze(2)), dim=2)[:, :, -settings.bank_entries :]
            arrays[frame + "query_out"] = queries.numpy()
        pairs = Pairs(queries, network.next_proposals(last.boxes, sizes))
        parameters = (network.mask_parameters if key else network.lite_mask_parameters)(last)
        masks = dynamic_masks(parameters[0], maps.mask_features[0], settings.mask_scale_px)
        stage = golden.parts(f"{frame}stage").get(len(stages) - 1, f"{frame}stage{len(stages) - 1}/")
        arrays[stage + "class_logits"], arrays[stage + "boxes"] = last.class_logits.numpy(), last.boxes.numpy()
        arrays[frame + "mask_logits_stride4"] = masks.numpy()
        probabilities[f"probabilities of frame {t}"] = last.class_logits.sigmoid().numpy()
    return arrays, probabilities
