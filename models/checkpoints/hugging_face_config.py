"""Checks a Hugging Face model's configuration, mostly a Mask2Former's, against visrt's network and against the weights.

transformers builds networks that the published one is not: other activations, strides, inputs. Their weights might
load all the same, and would then give wrong numbers, so every option that changes the computation is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import EXPANSION, ResNetSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import CheckpointError

__all__ = ["check_agreement", "check_model", "check_options", "check_sizes", "check_values", "class_names"]

MODEL_TYPE = "mask2former"
ARCHITECTURE = "Mask2FormerForUniversalSegmentation"

# Options that are not in a file have transformers' default, which is the published value for each of these.
OPTIONS = {
    "activation_function": "relu",
    "pre_norm": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}
OUTPUTS = {"num_channels": 3, "out_features": ["stage1", "stage2", "stage3", "stage4"], "out_indices": [1, 2, 3, 4]}
BACKBONE_OPTIONS: dict[str, dict[str, Any]] = {
    "resnet": {
        **OUTPUTS,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    "swin": {
        **OUTPUTS,
        "patch_size": 4,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    },
}


def check_options(config: Mapping[str, Any], path: Path) -> None:
    """Refuse another architecture, and a Mask2Former that is not computed as the published one; `path` is config's."""
    check_model(config, {MODEL_TYPE: ARCHITECTURE}, path)
    backbone = config.get("backbone_config")
    if not isinstance(backbone, dict):
        raise CheckpointError(
            f"{path}: has no backbone_config, so how its backbone {config.get('backbone')!r} computes is not known; "
            "load it with transformers and save it with save_pretrained"
        )
    name = backbone.get("model_type")
    if name not in BACKBONE_OPTIONS:
        known = " or ".join(BACKBONE_OPTIONS)
        raise CheckpointError(f"{path}: the backbone is of type {name!r}; expected transformers' own {known}")
    check_values(config, OPTIONS, "", path)
    check_values(backbone, BACKBONE_OPTIONS[name], "backbone_config.", path)
    if config.get("enforce_input_projection") and config.get("feature_size", 256) == config.get("hidden_dim", 256):
        raise CheckpointError(f"{path}: enforce_input_projection is True; visrt computes False only")


def check_model(config: Mapping[str, Any], architectures: Mapping[str, str], path: Path) -> None:
    """Refuse a configuration of another model type than those of `architectures`, or of another architecture."""
    kind = str(config.get("model_type"))
    heads = config.get("architectures") or list(architectures.values())
    if kind not in architectures or architectures[kind] not in heads:
        described = ", ".join(map(str, heads)) if kind in architectures else f"a model of type {kind!r}"
        expected = " or ".join(f"a {head}, of type {name!r}" for name, head in architectures.items())
        raise CheckpointError(f"{path}: describes {described}; expected {expected}")


def check_values(config: Mapping[str, Any], computed: Mapping[str, Any], prefix: str, path: Path) -> None:
    """Refuse options that have another value than the one that is `computed`."""
    for option, value in computed.items():
        given = config.get(option)
        if given is not None and given != value:
            raise CheckpointError(f"{path}: {prefix}{option} is {given!r}; visrt computes {value!r} only")


def check_agreement(config: Mapping[str, Any], settings: NetworkSettings, path: Path) -> None:
    """Refuse weights of other sizes than the configuration names: one of the two files is another model's."""
    check_sizes(config, network_sizes(settings), "", path)
    check_sizes(config["backbone_config"], backbone_sizes(settings), "backbone_config.", path)


def check_sizes(config: Mapping[str, Any], sizes: Mapping[str, Any], prefix: str, path: Path) -> None:
    """Refuse a configuration that names other `sizes` than the weights have."""
    for option, size in sizes.items():
        given = config.get(option)
        if given is not None and given != size:
            raise CheckpointError(
                f"{path}: {prefix}{option} is {given!r} but the weights with it have {size!r}; give the config.json "
                "that was saved with them"
            )


def network_sizes(settings: NetworkSettings) -> dict[str, Any]:
    """The sizes of the network under transformers' names; it counts the learned queries as a decoder layer."""
    return {
        "num_queries": settings.queries,
        "feature_size": settings.conv_dim,
        "mask_feature_size": settings.mask_dim,
        "hidden_dim": settings.hidden_dim,
        "num_attention_heads": settings.heads,
        "encoder_layers": settings.encoder_layers,
        "encoder_feedforward_dim": settings.encoder_feedforward_dim,
        "decoder_layers": settings.decoder_layers + 1,
        "dim_feedforward": settings.decoder_feedforward_dim,
    }


def backbone_sizes(settings: NetworkSettings) -> dict[str, Any]:
    backbone = settings.backbone
    if isinstance(backbone, SwinSettings):
        return {
            "model_type": "swin",
            "embed_dim": backbone.embed_dim,
            "depths": list(backbone.depths),
            "num_heads": list(backbone.heads),
            "window_size": backbone.window,
            "mlp_ratio": backbone.mlp_ratio,
        }
    assert isinstance(backbone, ResNetSettings)
    return {
        "model_type": "resnet",
        "embedding_size": backbone.stem_width,
        "hidden_sizes": [EXPANSION * backbone.width * 2**i for i in range(4)],
        "depths": list(backbone.blocks),
    }


def class_names(config: Mapping[str, Any], classes: int, path: Path) -> tuple[tuple[str, ...] | None, str]:
    """The names under id2label in the order of the class logits, and "".

    None where the configuration names none, or has names that are none of this network, and then why. transformers
    writes LABEL_0, LABEL_1, ... where it was given none.
    """
    names = config.get("id2label")
    expected = [str(index) for index in range(classes)]
    if names is None or names == {index: f"LABEL_{index}" for index in expected}:
        return None, ""
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return None, f"{path}: id2label is no json object of names; expected a name for each class number"
    if set(names) != set(expected):
        first = ", ".join(f"{number}: {name}" for number, name in list(names.items())[:3])
        return None, (
            f"{path}: id2label names {len(names)} classes, {first}{' ...' if len(names) > 3 else ''}; the weights "
            f"with it have {classes}, expected the numbers 0 to {classes - 1}"
        )
    return tuple(names[index] for index in expected), ""
