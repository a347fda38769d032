"""GenVIS in checkpoints: published files, and visrt's own."""

from __future__ import annotations

from visrt.models.checkpoints.architecture import NETWORKS, Weights, check_shapes, layer_count, settings_from_weights
from visrt.models.checkpoints.checkpoint import NetworkKind
from visrt.models.genvis import GenVis, GenVisNetworkSettings

__all__ = ["GENVIS"]

VITA = "vita_module."
VITA_WEIGHTS = {
    VITA + "query_feat.weight": 2,
    VITA + "transformer_ffn_layers.0.linear1.weight": 2,
}


def _settings_from_weights(weights: Weights, where: str) -> GenVisNetworkSettings:
    """The architecture of a GenVIS network in its published layout. Its attention has as many heads everywhere."""
    frame = settings_from_weights(weights, where)
    check_shapes(weights, VITA_WEIGHTS, where, NETWORKS)
    return GenVisNetworkSettings(
        frame=frame,
        instances=weights[VITA + "query_feat.weight"].shape[0],
        heads=frame.heads,
        encoder_layers=layer_count(weights, VITA + "enc_ffn."),
        decoder_layers=layer_count(weights, VITA + "transformer_ffn_layers."),
        feedforward_dim=weights[VITA + "transformer_ffn_layers.0.linear1.weight"].shape[0],
    )


GENVIS = NetworkKind(
    expected="a GenVIS network, trained with visrt or published",
    settings=GenVisNetworkSettings,
    build=GenVis,
    settings_from_weights=_settings_from_weights,
    mark=VITA + "pre_query_embed_k.weight",
)
