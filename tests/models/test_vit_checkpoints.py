"""Claims about checkpoints of EoMT and VidEoMT: published names and shapes, folders of transformers, and bad ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import golden_folder
from hugging_face_folders import randomised, transformers_or_skip
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from visrt.cli import app
from visrt.models.checkpoints import checkpoint as checkpoints
from visrt.models.checkpoints.checkpoint import NetworkKind, load_checkpoint, save_checkpoint
from visrt.models.checkpoints.conversion import convert_checkpoint, kind_of
from visrt.models.checkpoints.eomt import EOMT, eomt_with_base
from visrt.models.checkpoints.eomt_keys import own_weights
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.checkpoints.published import eomt, videomt
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.decoder import mask_logits
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.mask2former import IMAGENET_MEAN
from visrt.models.videomt import VideoMt, VideoMtSettings
from visrt.runtime.errors import CheckpointError, UsageError

REFERENCE = golden_folder().parent / "reference"

State = dict[str, Tensor]

LISTS: dict[str, tuple[EomtSettings, int]] = {
    "videomt_dinov2_small_ytvis19": (videomt("vit_s", 40), 198),
    "videomt_dinov2_base_ytvis19": (videomt("vit_b", 40), 198),
    "videomt_dinov2_large_ytvis19": (videomt("vit_l", 40), 366),
    "videomt_dinov3_large_ytvis19": (videomt("vit_l_dinov3", 40), 437),
    "videomt_hf_small_ytvis19": (videomt("vit_s", 40), 247),
    "videomt_hf_base_ytvis19": (videomt("vit_b", 40), 247),
    "videomt_hf_large_ytvis19": (videomt("vit_l", 40), 463),
    "eomt_dinov2_large_coco_instance": (eomt("vit_l", 80), 366),
    "eomt_hf_small_coco_panoptic": (eomt("vit_s", 133), 244),
    "eomt_hf_base_coco_panoptic": (eomt("vit_b", 133), 244),
    "eomt_hf_large_coco_instance": (eomt("vit_l", 80), 460),
    "eomt_dinov3_hf_large_coco_instance": (eomt("vit_l_dinov3", 80), 435),
}
"""By list of published names and shapes, the network and the number of entries."""

NOT_THE_NETWORKS = ("attn_mask_probs", "criterion.empty_weight", "embeddings.mask_token")

PARAMETERS = {"vit_s": 24.09, "vit_b": 94.18, "vit_l": 317.65, "vit_l_dinov3": 315.99}
"""Millions, of VidEoMT with 40 classes."""


def kind(settings: EomtSettings) -> NetworkKind[Any, Any]:
    return VIDEOMT if isinstance(settings, VideoMtSettings) else EOMT


def shapeless(settings: EomtSettings) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        built: nn.Module = kind(settings).build(settings)
    return built


def shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def listed(name: str) -> State:
    """The entries of a published file, without memory; pixel means, which are read, are ImageNet's."""
    path = REFERENCE / f"keys_{name}.tsv"
    if not path.exists():
        pytest.skip(f"no list of published keys at {path}")
    rows = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    state = {key: torch.empty([*map(int, shape.split("x"))], device="meta") for key, shape, *_ in rows}
    stored = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
    for key in [key for key in state if key.endswith(tuple(stored))]:
        state[key] = torch.tensor(stored[key.rpartition(".")[2]]).reshape(1, 3, 1, 1)
    return state


@pytest.mark.parametrize("name", LISTS)
def test_all_weights_of_published_files_load_into_full_size_networks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and shape, without memory for the values: what is missing or unexpected would be refused."""
    expected, entries = LISTS[name]
    state = listed(name)
    assert len(state) == entries
    monkeypatch.setattr(checkpoints, "read_tensor_file", lambda _: ({"model": state}, {}))
    (tmp_path / "official.pth").touch()
    loaded = load_checkpoint(tmp_path / "official.pth", kind(expected), expected_classes=expected.classes)
    assert loaded.settings == expected
    assert shapes(loaded.network().state_dict()) == shapes(shapeless(expected).state_dict())


@pytest.mark.parametrize("name", [name for name in LISTS if "_hf_" in name and "dinov3" not in name])
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    published = {key: shape for key, shape in shapes(listed(name)).items() if key not in NOT_THE_NETWORKS}
    assert shapes(shapeless(LISTS[name][0]).state_dict()) == published


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    parameters = sum(parameter.numel() for parameter in shapeless(videomt(name, 40)).parameters())
    assert parameters / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)


SIZES: dict[str, Any] = {
    "classes": 3, "queries": 5, "dim": 64, "blocks": 3, "heads": 1, "feedforward_dim": 96, "query_blocks": 2,
    "registers": 4, "table_side": 3,
}  # fmt: skip
ROTARY: dict[str, Any] = {"positions": "rotary", "table_side": 0, "norm_eps": 1e-5}
CLASSES = ("person", "vehicle", "animal")

OFFICIAL_NAMES = (
    (r"^embeddings\.cls_token$", "encoder.backbone.cls_token"),
    (r"^embeddings\.register_tokens$", "encoder.backbone.reg_token"),
    (r"^embeddings\.position_embeddings\.weight$", "encoder.backbone.pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.backbone.patch_embed.proj."),
    (r"^layers\.(\d+)\.", r"encoder.backbone.blocks.\1."),
    (r"\.attention\.out_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^layernorm\.", "encoder.backbone.norm."),
    (r"^query\.", "q."),
    (r"^class_predictor\.", "class_head."),
    (r"^mask_head\.fc(\d)\.", lambda found: f"mask_head.{2 * int(found[1]) - 2}."),
    (r"^upscale_block\.block\.(\d)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"^upscale_block\.block\.", "upscale."),
)
DINOV3_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.backbone.patch_embed.patch_embeddings."),
    (r"^embeddings\.", "encoder.backbone.patch_embed."),
    (r"^layers\.", "encoder.backbone.blocks."),
    (r"\.attention\.out_proj\.", ".attention.o_proj."),
    (r"\.mlp\.fc1\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    *OFFICIAL_NAMES[8:],
)


def network(settings: EomtSettings) -> nn.Module:
    torch.manual_seed(0)
    return randomised(kind(settings).build(settings)).eval()


def official(settings: EomtSettings) -> State:
    """What the official file of `network(settings)` holds."""
    state = network(settings).state_dict()
    rotary = settings.positions == "rotary"
    prefix = "backbone." if isinstance(settings, VideoMtSettings) else "network."
    for key in [key for key in state if key.endswith("attention.q_proj.weight") and not rotary]:
        for leaf in ("weight", "bias"):
            before = key.removesuffix("attention.q_proj.weight")
            parts = [state.pop(f"{before}attention.{letter}_proj.{leaf}") for letter in "qkv"]
            state[f"{before}attn.qkv.{leaf}"] = torch.cat(parts)
    for key in [key for key in state if key.endswith("mlp.gate_proj.weight")]:
        for leaf in ("weight", "bias"):
            before = key.removesuffix("gate_proj.weight")
            state[f"{before}fc1.{leaf}"] = torch.cat([state.pop(f"{before}{n}_proj.{leaf}") for n in ("gate", "up")])
    named = {"attn_mask_probs": torch.zeros(settings.query_blocks)}
    for key, value in state.items():
        for pattern, name in DINOV3_NAMES if rotary else OFFICIAL_NAMES:
            key = re.sub(pattern, name, key)
        named[key] = value[None] if key.endswith("pos_embed") else value
    return {prefix + key: value for key, value in named.items()} | {"criterion.empty_weight": torch.ones(4)}


def saved(path: Path, state: State, name: str = "model") -> Path:
    torch.save({name: state}, path)
    return path


FILES: dict[str, EomtSettings] = {
    "videomt": VideoMtSettings(**SIZES),
    "videomt dinov3": VideoMtSettings(**{**SIZES, **ROTARY}),
    "eomt": EomtSettings(**SIZES),
    "eomt gated": EomtSettings(**{**SIZES, "feedforward": "swiglu"}),
}


@pytest.mark.parametrize("name", FILES)
def test_an_official_file_says_its_architecture_and_loads_unchanged(name: str, tmp_path: Path) -> None:
    settings = FILES[name]
    path = saved(tmp_path / "official.pth", official(settings))
    loaded = load_checkpoint(path, kind(settings))
    assert loaded.settings == settings
    assert kind_of(path) == name.split()[0]
    ours, theirs = loaded.network().state_dict(), network(settings).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", FILES)
def test_what_is_saved_comes_back(name: str, tmp_path: Path) -> None:
    settings = FILES[name]
    path = tmp_path / "own.safetensors"
    save_checkpoint(network(settings), path, CLASSES)
    loaded = load_checkpoint(path, kind(settings))
    assert (loaded.settings, loaded.classes, kind_of(path)) == (settings, CLASSES, name.split()[0])
    assert all(torch.equal(loaded.weights[key], value) for key, value in network(settings).state_dict().items())


def test_settings_that_no_weight_shows_are_given(tmp_path: Path) -> None:
    path = saved(tmp_path / "official.pth", official(FILES["videomt dinov3"]))
    given = {"norm_queries": True, "heads": 2}
    settings = load_checkpoint(path, VIDEOMT, settings=given).settings
    assert (settings.norm_queries, settings.heads) == (True, 2)
    with pytest.raises(UsageError, match="queries: the weights tell it"):
        load_checkpoint(path, VIDEOMT, settings={"queries": 3})


def test_whether_queries_are_normed_must_be_said_where_published_networks_differ(tmp_path: Path) -> None:
    """VIPSeg and VSPW, of 124 classes, with DINOv3."""
    settings = VideoMtSettings(**{**SIZES, **ROTARY, "classes": 124})
    path = saved(tmp_path / "vspw_dinov3_94.4_64.0.pth", official(settings))
    with pytest.raises(UsageError, match="no weight shows; convert it with --set norm_queries=true") as raised:
        load_checkpoint(path, VIDEOMT)
    assert "\n" not in str(raised.value)
    names = tuple(map(str, range(124)))
    for normed in (True, False):
        out = tmp_path / f"{normed}.safetensors"
        convert_checkpoint(path, out, names, settings={"norm_queries": normed})
        assert load_checkpoint(out, VIDEOMT).settings == VideoMtSettings(**{**asdict(settings), "norm_queries": normed})
    table = saved(tmp_path / "vspw.pth", official(VideoMtSettings(**{**SIZES, "classes": 124})))
    assert not load_checkpoint(table, VIDEOMT).settings.norm_queries


def test_pixel_means_in_a_file_are_those_of_the_network(tmp_path: Path) -> None:
    state = official(FILES["eomt"])
    stored = {"network.encoder.pixel_mean": torch.full((1, 3, 1, 1), 0.5)}
    loaded = load_checkpoint(saved(tmp_path / "own.ckpt", {**state, **stored}, "state_dict"), EOMT)
    assert loaded.settings.pixel_mean == (127.5, 127.5, 127.5)
    assert load_checkpoint(saved(tmp_path / "none.ckpt", state), EOMT).settings.pixel_mean == IMAGENET_MEAN
    loaded.network()


def test_projections_in_one_matrix_are_taken_apart_and_a_key_bias_of_dinov3_must_be_zero(tmp_path: Path) -> None:
    state = official(FILES["videomt dinov3"])
    before = "backbone.encoder.backbone.blocks.0.attention."
    expected = load_checkpoint(saved(tmp_path / "apart.pth", state), VIDEOMT).network().state_dict()
    fused = dict(state)
    biases = [fused.pop(f"{before}q_proj.bias"), torch.zeros(64), fused.pop(f"{before}v_proj.bias")]
    fused[f"{before}qkv_proj.weight"] = torch.cat([fused.pop(f"{before}{letter}_proj.weight") for letter in "qkv"])
    fused[f"{before}qkv_proj.bias"] = torch.cat(biases)
    loaded = load_checkpoint(saved(tmp_path / "fused.pth", fused), VIDEOMT).network().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    fused[f"{before}qkv_proj.bias"] = torch.ones(192)
    with pytest.raises(CheckpointError, match="the keys have a bias; expected none"):
        load_checkpoint(saved(tmp_path / "biased.pth", fused), VIDEOMT)


def change(prefix: str, key: str, value: Tensor | None) -> Callable[[State], None]:
    """Put `value` in the place of an entry, or remove it."""

    def changed(state: State) -> None:
        state.pop(prefix + key, None)
        if value is not None:
            state[prefix + key] = value

    return changed


VIT = "backbone.encoder.backbone."


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (change(VIT, "pos_embed", torch.zeros(1, 12, 64)), "has 12 positions; expected those of a square"),
        (change(VIT, "blocks.1.norm1.bias", None), "1 missing: layers.1.norm1.bias$"),
        (
            change(VIT, "blocks.1.attn.qkv.weight", torch.zeros(100, 64)),
            r"qkv_proj.weight has shape \(100, 64\); expected q_proj, k",
        ),
        (change(VIT, "blocks.1.mlp.fc1.bias", torch.zeros(7)), "1 misshapen: layers.1.mlp.fc1.bias 7, expected 96$"),
        (change(VIT, "blocks.0.mlp.fc2.weight", None), "layers.0.mlp.fc2.weight; expected an EoMT or VidEoMT network"),
        (change(VIT, "patch_embed.proj.weight", torch.zeros(64, 3, 14, 14)), "14x14 .* expected squares of 8, 16, 32"),
        (change(VIT, "patch_embed.proj.weight", torch.zeros(64, 1, 16, 16)), "16x16 pixels of 1 channels; .* in RGB"),
        (change("backbone.", "q.weight", torch.zeros(5, 48)), "1 misshapen: query.weight 5x48, expected 5x64$"),
        (change("backbone.", "class_head.bias", torch.zeros(9)), "class_predictor.bias 9, expected 4$"),
        (change("backbone.", "attn_mask_probs", None), "missing: attn_mask_probs; expected an EoMT or VidEoMT"),
        (change("backbone.", "attn_mask_probs", torch.zeros(9)), "9 blocks with queries of 3"),
        (change("backbone.", "reid_head.weight", torch.zeros(9)), "1 unexpected: reid_head.weight$"),
        (change(VIT, "cls_token", torch.zeros(1, 1, 48)), "48 channels in an unknown number of heads; set heads"),
        (
            change("backbone.", "query_updater.weight", None),
            "this is a VidEoMT checkpoint",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(spoil: Callable[[State], None], told: str, tmp_path: Path) -> None:
    state = official(FILES["videomt"])
    spoil(state)
    with pytest.raises(CheckpointError, match=told) as raised:
        load_checkpoint(saved(tmp_path / "official.pth", state), VIDEOMT).network()
    assert "\n" not in str(raised.value)


def test_a_class_count_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "official.pth", official(FILES["videomt"]))
    with pytest.raises(CheckpointError, match="has 3 classes but 40 were given"):
        load_checkpoint(path, VIDEOMT, expected_classes=40)


@pytest.mark.parametrize(
    ("name", "read_as", "told"),
    [
        (
            "videomt",
            MASK2FORMER,
            r"VidEoMT checkpoint \(export it with --family videomt\); expected a MinVIS",
        ),
        ("eomt", MASK2FORMER, r"this is an EoMT checkpoint \(export it with --family eomt\); expected a MinVIS"),
        ("videomt", EOMT, "this is a VidEoMT network, whose queries travel; expected EoMT"),
        ("eomt", VIDEOMT, r"this is an EoMT checkpoint .*; expected a VidEoMT network"),
    ],
)
def test_a_file_of_the_other_family_is_told(
    name: str, read_as: NetworkKind[Any, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(saved(tmp_path / "other.pth", official(FILES[name])), read_as)


DIFFERENCES = EomtSettings(**{**SIZES, **ROTARY})


@pytest.fixture
def dinov3(tmp_path: Path) -> Path:
    """A folder with the transformer from which `DIFFERENCES` was trained, as transformers saves it."""
    transformers = transformers_or_skip()
    torch.manual_seed(1)
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=1, intermediate_size=96, num_register_tokens=4
    )
    randomised(transformers.DINOv3ViTModel(config)).save_pretrained(tmp_path / "dinov3")  # type: ignore[operator]
    return tmp_path / "dinov3"


def test_differences_to_dinov3_are_refused_without_their_base_and_added_to_it(dinov3: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "pytorch_model.bin", official(DIFFERENCES))
    with pytest.raises(CheckpointError, match=r"published as differences to DINOv3's weights, .* --base FOLDER"):
        load_checkpoint(path, EOMT)
    whole = load_checkpoint(path, eomt_with_base(dinov3)).network().state_dict()
    base = own_weights(load_file(dinov3 / "model.safetensors"))
    for key, value in network(DIFFERENCES).state_dict().items():
        of_base = base.get(key, torch.zeros(()))
        assert torch.equal(whole[key], value + of_base), key
    assert len([key for key in whole if key in base]) == len(base) - 1, "all but the mask token"


def test_differences_are_refused_by_the_command_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "pytorch_model.bin", official(DIFFERENCES))
    size = ("--size", "64x96", "--out", str(tmp_path / "bundle"))
    ended = CliRunner().invoke(app, ["export", str(path), "--family", "eomt", "--classes", ",".join(CLASSES), *size])
    assert ended.exit_code == CheckpointError.exit_code
    [line] = ended.stderr.splitlines()
    assert "published as differences to DINOv3's weights" in line
    assert not (tmp_path / "bundle").exists()


def test_a_whole_file_with_dinov3_is_taken_as_it_is_when_its_owner_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "own.ckpt", official(DIFFERENCES), "state_dict")
    loaded = load_checkpoint(path, eomt_with_base(Path("none"))).network().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network(DIFFERENCES).state_dict().items())


def test_a_base_that_does_not_fit_or_is_not_needed_is_refused(dinov3: Path, tmp_path: Path) -> None:
    other = EomtSettings(**{**SIZES, **ROTARY, "blocks": 4})
    with pytest.raises(CheckpointError, match=r"layers.3.norm1.weight.* and \d+ more; expected the DINOv3 network"):
        load_checkpoint(saved(tmp_path / "other.bin", official(other)), eomt_with_base(dinov3))
    with pytest.raises(UsageError, match="holds whole weights; leave out the base"):
        load_checkpoint(saved(tmp_path / "whole.bin", official(FILES["eomt"])), eomt_with_base(dinov3))
    path = saved(tmp_path / "videomt.pth", official(FILES["videomt dinov3"]))
    with pytest.raises(UsageError, match="holds whole weights; leave out the base"):
        convert_checkpoint(path, tmp_path / "out.safetensors", CLASSES, base=dinov3)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "videomt": ("Videomt", {"mlp_ratio": 2}),
    "eomt": ("Eomt", {"mlp_ratio": 2}),
    "eomt gated": ("Eomt", {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "eomt dinov3": ("EomtDinov3", {"intermediate_size": 96}),
}
"""Architectures of transformers, and what their configurations have but for `TINY`."""

TINY: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "num_blocks": 2, "num_queries": 6,
    "image_size": 64, "id2label": dict(enumerate(CLASSES)),
}  # fmt: skip


def save_model(folder: Path, name: str) -> Any:
    """A model of transformers with random weights, saved to `folder`; masked attention is off, as in published ones."""
    transformers = transformers_or_skip()
    torch.manual_seed(0)
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**TINY, **options)
    model: Any = randomised(getattr(transformers, f"{kind}ForUniversalSegmentation")(config)).eval()
    if name != "videomt":
        model.attn_mask_probs.zero_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_folder_gives_the_logits_and_masks_of_transformers(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path, name)
    frames = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = model(frames[None] if name == "videomt" else frames)
    read_as: NetworkKind[Any, Any] = VIDEOMT if name == "videomt" else EOMT
    loaded = load_checkpoint(tmp_path, read_as)
    ours = loaded.network()
    outputs = [output.frame for output in ours(frames)] if isinstance(ours, VideoMt) else [ours(frames)]
    logits = torch.cat([frame.class_logits for frame in outputs])
    masks = torch.cat([mask_logits(frame.mask_embeddings, frame.mask_features) for frame in outputs])
    torch.testing.assert_close(logits, theirs.class_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, theirs.masks_queries_logits, atol=1e-3, rtol=0)
    assert theirs.class_queries_logits.std() > 0.1, "nothing to tell apart"
    assert (loaded.classes, kind_of(tmp_path)) == (CLASSES, name.split()[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "folder", "eomt")
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model_type": "videomt"}, "describes a model of type 'videomt'; expected a EomtForUniversalSegmentation"),
        ({"architectures": ["EomtModel"]}, "describes EomtModel; expected a EomtFor"),
        ({"image_size": [448, 800]}, r"image_size is \[448, 800\]; expected one number, as .* on squares only"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; visrt computes 'gelu' only"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps is '1e-6'; expected a small number"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; expected a number that divides 48 channels"),
        ({"num_blocks": 3}, "num_blocks is 3 but the weights with it have 2"),
        ({"num_queries": 200}, "num_queries is 200 but the weights with it have 6"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True but the weights with it have False"),
    ],
)
def test_a_configuration_of_what_is_not_computed_is_one_line(changed: dict[str, Any], told: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(CheckpointError, match=told) as raised:
        load_checkpoint(folder, EOMT)
    assert "\n" not in str(raised.value)


def test_names_of_another_number_of_classes_are_told_where_names_are_needed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "person"}}))
    checkpoint = load_checkpoint(folder, EOMT)
    assert checkpoint.classes is None
    assert "id2label names 1 classes, 0: person; the weights with it have 3" in checkpoint.classes_fault


def test_a_folder_that_transformers_runs_with_masked_attention_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "attn_mask_probs": torch.tensor([0.0, 0.25])}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"attn_mask_probs is \[0.0, 0.25\].* expected zeros"):
        load_checkpoint(folder, EOMT)


def test_the_table_counts_where_a_configuration_names_another_image_size(folder: Path) -> None:
    """Published folders do: their transformer sees the squares of its table, whatever the configuration says."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": 1280}))
    assert load_checkpoint(folder, EOMT).settings.table_side == 4


def test_official_weights_in_a_folder_are_not_read_by_its_configuration(folder: Path) -> None:
    """Those of EoMT with DINOv3 would be differences."""
    (folder / "model.safetensors").unlink()
    torch.save(official(DIFFERENCES), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="are the official ones, not transformers'; give their file itself"):
        load_checkpoint(folder, EOMT)


def test_names_that_transformers_makes_up_are_left_to_the_user(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(folder, EOMT).classes is None


def test_a_folder_tells_its_settings_itself(folder: Path) -> None:
    with pytest.raises(UsageError, match="its configuration tells the settings; leave out heads"):
        load_checkpoint(folder, EOMT, settings={"heads": 2})


def test_networks_of_the_two_kinds_are_built() -> None:
    assert isinstance(network(FILES["videomt"]), VideoMt)
    assert isinstance(network(FILES["eomt"]), Eomt)
