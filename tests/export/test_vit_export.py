"""Claims about bundles of EoMT and VidEoMT: parity, positions as constants, the official outputs, TensorRT-RTX."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_networks
import numpy as np
import onnxruntime as ort
import pytest
import torch
from annotated_sets import set_values, write_set
from golden import Golden, assert_same_finals, class_names, comparing, fit_officially, golden_sets
from streams_together import assert_together_as_alone
from typer.testing import CliRunner
from written_clips import write_clip

from visrt.benchmarks.video_level.rules import official_result
from visrt.benchmarks.video_level.tracks import TOP_K, best_of_video
from visrt.cli import app
from visrt.export import bundle as exporting
from visrt.export.bundle import Export, export_bundle
from visrt.export.eomt import read_eomt
from visrt.export.families import published_resize
from visrt.export.videomt import DecoderGraph, read_videomt
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import eomt, videomt
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.videomt import VideoMt, VideoMtSettings
from visrt.runtime.arrays import Floats
from visrt.runtime.bundles.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.engines.trt.build import Profile, build_engine, build_request
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.errors import BundleError, UsageError
from visrt.runtime.image import letterbox_into, pillow_bilinear
from visrt.runtime.methods.method import Call, FrameOutputs, Steps
from visrt.runtime.methods.minvis import MinVis
from visrt.runtime.methods.presets import PRESETS
from visrt.runtime.methods.registry import method_of
from visrt.runtime.methods.videomt import decoded
from visrt.runtime.session import Session, SessionSettings

HEIGHT, WIDTH = 64, 96
CLASSES = ("person", "vehicle", "animal")
SIZES: dict[str, Any] = {
    "classes": 3, "queries": 6, "dim": 64, "blocks": 3, "heads": 1, "feedforward_dim": 96, "query_blocks": 2,
    "table_side": 3,
}  # fmt: skip
ROTARY: dict[str, Any] = {"positions": "rotary", "table_side": 0, "norm_eps": 1e-5}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "eomt": ("eomt", {}, "fp32"),
    "eomt rotary in fp16": ("eomt", ROTARY, "fp16"),
    "videomt": ("videomt", {}, "fp32"),
    "videomt rotary in fp16": ("videomt", ROTARY, "fp16"),
}
"""Family, settings and precision of the bundles."""

PROFILES: dict[str, Profile] = {
    "frame": {"batch": (1, 2, 4)},
    "decoder": {"streams": (1, 2, 4)},
    "masks": {"streams": (1, 2, 4), "masks": (1, 6, 100)},
}
"""Smallest, usual and largest size of a graph's dynamic axis."""

CONSTANT = {"Resize", "Cos", "Sin", "Range", "Pad", "GridSample"}
"""Operators of which positions are made in torch."""

_DONE: dict[str, Bundle] = {}


def network(family: str = "eomt", **changed: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, **changed}
    built = Eomt(EomtSettings(**sizes)) if family == "eomt" else VideoMt(VideoMtSettings(**sizes))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built.eval()


def bundle_of(kind: str, folders: pytest.TempPathFactory) -> Bundle:
    """Each is exported once; export itself compares ONNX Runtime with torch."""
    family, changed, precision = KINDS[kind]
    if kind not in _DONE:
        folder = folders.mktemp(family)
        save_checkpoint(network(family, **changed), folder / "model.safetensors", CLASSES)
        export = Export(
            folder / "model.safetensors", folder / "bundle", HEIGHT, WIDTH, family=family, precision=precision
        )
        assert export_bundle(export).parity.passed
        _DONE[kind] = open_bundle(folder / "bundle")
    return _DONE[kind]


@pytest.fixture(params=list(KINDS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory)


@pytest.fixture(params=[kind for kind in KINDS if kind.startswith("eomt")])
def per_frame(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory)


@pytest.fixture(params=[kind for kind in KINDS if kind.startswith("videomt")])
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory)


def test_positions_are_constants_of_the_graph(bundle: Bundle) -> None:
    import onnx

    for name in bundle.manifest.graphs:
        operators = {node.op_type for node in onnx.load_from_string(bundle.graph(name)).graph.node}
        assert "MatMul" in operators
        assert not operators & CONSTANT


def test_queries_of_eomt_are_tracked_by_the_rules_of_per_frame_networks(per_frame: Bundle) -> None:
    assert isinstance(method_of(per_frame.manifest), MinVis)
    assert method_of(per_frame.manifest, preset="ctvis").settings.keep_score


def test_a_clip_is_tracked(bundle: Bundle, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 4)
    arguments = ("track", clip, "--bundle", bundle.folder, "--out", tmp_path / "out", "--threads", 1)
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    lines = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert [line["frame"] for line in lines if "frame" in line] == list(range(4))


def test_padding_is_black_before_the_normalisation_whatever_the_images_hold_there(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "model.safetensors", CLASSES)
    graph = read_eomt(tmp_path / "model.safetensors", InputSpec(height=HEIGHT, width=WIDTH), {}).graph
    images = torch.full((1, HEIGHT, WIDTH, 3), 200, dtype=torch.uint8)
    pixels = graph.normalised(images, torch.tensor([[40, 50]], dtype=torch.int32))
    expected = (torch.zeros(3) - graph.pixel_mean.flatten()) / graph.pixel_std.flatten()
    torch.testing.assert_close(pixels[0, :, 45, 20], expected)
    torch.testing.assert_close(pixels[0, :, 20, 60], expected)
    assert (pixels[0, :, 39, 49] > 0).all()


def test_the_published_resize_is_to_a_long_side_of_640() -> None:
    resize = published_resize("eomt", eomt("vit_l", 80), ())
    assert (resize.short_side, resize.long_side) == (640, 640)


@pytest.mark.parametrize(
    ("name", "classes", "short_side"),
    [("vit_s", "ytvis2019", 448), ("vit_l", "ovis", 544), ("vit_l_dinov3", "ytvis2021", 480)],
)
def test_the_published_short_sides_of_videomt(name: str, classes: str, short_side: int) -> None:
    names = DATASET_CLASSES[classes]
    resize = published_resize("videomt", videomt(name, len(names)), names)
    assert (resize.short_side, resize.long_side) == (short_side, 1333)


def test_the_state_is_carried_in_float32_by_the_engine_and_maps_stay_on_its_device(stateful: Bundle) -> None:
    manifest = stateful.manifest
    assert list(manifest.read_by("decoder")) == ["queries"]
    assert (manifest.states["queries"].device, manifest.states["queries"].dtype) == ("engine", "float32")
    assert manifest.graphs["frame"].outputs["tokens"].place == "device"
    assert manifest.graphs["decoder"].outputs["mask_features"].place == "device"
    kind = "float16" if manifest.graphs["decoder"].precision == "fp16" else "float32"
    assert manifest.graphs["frame"].outputs["tokens"].dtype == kind


def test_the_state_before_the_first_frame_is_the_learned_queries(stateful: Bundle) -> None:
    rotary = stateful.manifest.graphs["decoder"].precision == "fp16"
    learned = network("videomt", **(ROTARY if rotary else {})).query.weight.detach().numpy()
    assert np.array_equal(initial_states(stateful)["queries"], learned)


FRAMES = [np.random.default_rng(t).integers(0, 256, (80, 120, 3), dtype=np.uint8) for t in range(4)]
SHOW_ALL = {"birth_score": 0.0, "keep_score": 0.0, "revive_similarity": -1.0}


def shown(session: Session, frames: list[np.ndarray[Any, Any]]) -> list[dict[int, tuple[int, float, str]]]:
    """Label, score and mask of each object by id, frame by frame."""
    results = [result for frame in frames for result in session.step(frame)] + session.flush()
    return [{o.id: (o.label, o.score, str(o.rle)) for o in result.objects} for result in results]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_stream_goes_on_from_its_state_and_a_new_one_from_the_first(stateful: Bundle, in_flight: int) -> None:
    settings = SessionSettings(in_flight=in_flight)
    with Session.open(stateful, threads=1, settings=settings, association=SHOW_ALL) as session:
        once = shown(session, FRAMES)
        session.reset()
        again = shown(session, FRAMES)
        session.reset()
        alone = shown(session, FRAMES[2:3])
    assert once == again
    assert any(once)
    assert alone[0] != once[2], "the third frame of a stream does not look like a first one"


@pytest.mark.parametrize("missing", [False, True])
def test_streams_in_one_call_are_bit_for_bit_those_of_single_sessions(
    missing: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where streams have no frame now and then. In FP16 ONNX Runtime rounds a batch of eight unlike one."""
    assert_together_as_alone(bundle_of("videomt", tmp_path_factory), "decoder", SHOW_ALL, missing=missing)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e5])
def test_a_slot_whose_state_is_not_finite_or_too_large_starts_from_its_learned_query(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so by its class logits; the other slots do not notice."""
    made = network("videomt")
    graph = DecoderGraph(made, HEIGHT, WIDTH)
    patches = (HEIGHT // made.settings.patch) * (WIDTH // made.settings.patch)
    tokens = torch.randn(2, made.settings.special_tokens + patches, made.settings.dim)
    following = made.next_queries

    def spoilt(queries: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = following(queries)
        result[1, 2, 3] = value
        return result

    with torch.no_grad():
        expected = graph(tokens, made.first_queries(2))
        monkeypatch.setattr(made, "next_queries", spoilt)
        found = graph(tokens, made.first_queries(2))
    others = torch.ones(found.class_logits.shape[:2], dtype=torch.bool)
    others[1, 2] = False
    assert found.class_logits[1, 2].isnan().all()
    assert torch.equal(found.next_queries[1, 2], made.query.weight[2])
    for role in ("class_logits", "next_queries", "mask_embeddings"):
        assert torch.equal(getattr(found, role)[others], getattr(expected, role)[others])


EOMTS = pytest.mark.parametrize("golden", golden_sets("eomt", "images"), indirect=True)
VIDEOMTS = pytest.mark.parametrize("golden", golden_sets("videomt", "video"), indirect=True)


@EOMTS
def test_golden_eomt_exported_graphs_give_the_official_outputs(golden: Golden) -> None:
    """From raw frames on, in ONNX Runtime, all in one call; the rest of the square is black, as in the set."""
    folder = golden.path.with_name(f"{golden.path.stem}_hf")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    height, width = golden.input_size
    export = read_eomt(folder, InputSpec(height=height, width=width), {})
    models = export.onnx_models(export.float32_graphs(), torch.float32)
    frame, masks = (ort.InferenceSession(models[name].SerializeToString()) for name in ("frame", "masks"))
    images = np.zeros((len(golden.frames), height, width, 3), dtype=np.uint8)
    fits = [
        letterbox_into(out, shown, export.spec, pillow_bilinear)
        for out, shown in zip(images, golden.frames, strict=True)
    ]
    assert np.array_equal(images.transpose(0, 3, 1, 2), golden["padded_u8"])
    images[:, fits[0].valid[0] :] = 200
    sizes = np.array([fit.valid for fit in fits], dtype=np.int32)
    names = [output.name for output in frame.get_outputs()]
    outputs = dict(zip(names, frame.run(None, {"images": images, "valid_sizes": sizes}), strict=True))
    logits = [
        masks.run(None, {"mask_embeddings": rows, "mask_features": features})[0]
        for rows, features in zip(outputs["mask_embeddings"], outputs["mask_features"], strict=True)
    ]
    with comparing(golden, {"pred_logits": 1e-4, "pred_masks": 1e-3}) as compare:
        compare("", {"pred_logits": outputs["class_logits"], "mask_embeddings": outputs["mask_embeddings"]})
        compare("", {"mask_features": outputs["mask_features"], "pred_masks": np.stack(logits)})


@pytest.fixture(scope="module")
def golden_bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Golden], Bundle]:
    """The bundle exported from the weights of a set, each exported once; that of EoMT in its square of five patches."""

    def exported(golden: Golden) -> Bundle:
        name = golden.path.stem
        if name not in _DONE:
            folder, family = tmp_path_factory.mktemp(name), name.split("_")[0]
            official: Any = golden_networks.eomt(golden) if family == "eomt" else golden_networks.videomt(golden)
            save_checkpoint(official, folder / "model.safetensors", class_names(official.settings.classes))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exporting, "SIZE_DIVISOR", official.settings.patch)
                export_bundle(
                    Export(folder / "model.safetensors", folder / "bundle", *golden.input_size, family=family)
                )
            _DONE[name] = open_bundle(folder / "bundle")
        return _DONE[name]

    return exported


@EOMTS
def test_golden_eomt_of_a_video_is_scored_by_the_rule_of_minvis(
    golden: Golden, golden_bundles: Callable[[Golden], Bundle]
) -> None:
    """From raw frames, against the logits of the set in the order of its matches."""
    first, *later = golden["pred_logits"]
    slots = [first, *(logits[order] for logits, order in zip(later, golden["minvis_match_perm"], strict=True))]
    expected = best_of_video(np.mean(slots, axis=0), TOP_K)
    with Session.open(golden_bundles(golden), threads=1) as session:
        result = official_result(session, lambda: iter(golden.frames))
    assert [track.label for track in result.tracks] == [best.label for best in expected]
    assert [track.score for track in result.tracks] == pytest.approx([best.score for best in expected], abs=1e-4)
    assert {len(track.masks) for track in result.tracks} == {len(golden.frames)}


@pytest.mark.parametrize("preset", PRESETS)
@EOMTS
def test_golden_eomt_every_association_follows_the_objects_of_a_video(
    golden: Golden, preset: str, golden_bundles: Callable[[Golden], Bundle]
) -> None:
    """Random weights are sure of nothing, so thresholds are at zero."""
    everything = {"birth_score": 0.0, "keep_score": 0.0, "nms_iou": 1.0}
    if PRESETS[preset].family == "ctvis":
        everything |= {"show_score": 0.0, "steady_frames": 1}
    with Session.open(golden_bundles(golden), threads=1, preset=preset, association=everything) as session:
        frames = shown(session, golden.frames)
    assert len(frames) == len(golden.frames)
    followed = set.intersection(*map(set, frames))
    assert len(followed) > len(frames[0]) / 2 > 0


def test_an_association_that_needs_more_than_the_bundle_has_is_refused_in_one_line(
    per_frame: Bundle, stateful: Bundle
) -> None:
    with pytest.raises(UsageError, match=r"of family 'videomt'; presets are for bundles of ctvis, eomt, minvis$") as no:
        method_of(stateful.manifest, preset="ctvis")
    assert "\n" not in str(no.value)
    frame = per_frame.manifest.graphs["frame"]
    outputs = {role: tensor for role, tensor in frame.outputs.items() if role != "embeddings"}
    graphs = {**per_frame.manifest.graphs, "frame": frame.model_copy(update={"outputs": outputs})}
    bare = per_frame.manifest.model_copy(update={"graphs": graphs})
    for preset in ("minvis", "ctvis"):
        with pytest.raises(BundleError, match="embeddings") as lacks:
            method_of(bare, preset=preset)
        assert "\n" not in str(lacks.value)


@pytest.mark.parametrize(("kind", "options"), [("eomt", ()), ("eomt", ("--preset", "ctvis")), ("videomt", ())])
def test_the_command_scores_a_set_by_the_official_rule(
    kind: str, options: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = bundle_of(kind, tmp_path_factory).folder
    write_set(tmp_path / "data", set_values(videos=1, frames=3))
    (tmp_path / "map.json").write_text('{"dog": "animal", "car": "vehicle"}')
    where = ("--bundle", folder, "--data", tmp_path / "data", "--classes", tmp_path / "map.json", "--threads", 1)
    written = ("--rule", "official", "--json", tmp_path / "figures.json", *options)
    ended = CliRunner().invoke(app, ["eval", *map(str, (*where, *written))])
    assert ended.exit_code == 0, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["settings"]["rule"] == "official"
    assert 0 <= figures["precision"]["ap"] <= 1


@VIDEOMTS
def test_golden_videomt_folder_of_transformers_exports_in_another_shape_than_its_square(golden: Golden) -> None:
    """transformers runs it in the square of its position table only."""
    folder = golden.path.with_name(f"{golden.path.stem}_hf")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    height, width = golden.input_size
    assert height != width
    made = read_videomt(folder, InputSpec(height=height, width=width), {})
    assert made.checkpoint.settings.positions == "table"
    outputs = made.full_outputs(torch.from_numpy(golden["net_input"][3:4]))
    with comparing(golden, {"reset_frame3_logits": 1e-4, "reset_frame3_masks": 1e-3}) as compare:
        compare("reset_frame3_", {"logits": outputs["class_logits"], "masks": outputs["mask_logits"]})


def every_mask(frame: FrameOutputs, slots: int) -> Steps[Floats]:
    """Of all slots, with the padding."""
    answer = yield Call("masks", [frame], {"slots": np.arange(slots)})
    return answer.host["mask_logits"]


@VIDEOMTS
def test_golden_videomt_exported_graphs_give_the_official_outputs_over_the_clip(
    golden: Golden, golden_bundles: Callable[[Golden], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint -> bundle -> ONNX Runtime, from raw frames; the state goes from call to call."""
    fit_officially(monkeypatch, golden)
    logits, queries, masks = [], [], []
    with Session.open(golden_bundles(golden), threads=1) as session:
        net, states = session.network, session.network.new_states()
        for frame in golden.frames:
            [encoded] = net.run_frames([frame])
            logits.append(net.alone(decoded(encoded), states)[0])
            queries.append(states.tensor("queries").numpy().copy())
            masks.append(net.alone(every_mask(encoded, len(queries[0])), states))
    bounds = {"pred_logits": 1e-4, "queries_next": 1e-4, "pred_masks": 1e-3}
    with comparing(golden, bounds) as compare:
        compare("", {"pred_logits": np.stack(logits), "queries_next": np.stack(queries), "pred_masks": np.stack(masks)})


@VIDEOMTS
def test_golden_videomt_from_frames_to_the_official_result(
    golden: Golden, golden_bundles: Callable[[Golden], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)
    with Session.open(golden_bundles(golden), threads=1) as session:
        result = official_result(session, lambda: iter(golden.frames), golden.config["max_num"])
    assert_same_finals(result, golden.finals)


@pytest.mark.parametrize("targets", [("8.0",), ("8.6", "8.9", "12.0"), ("7.5",)], ids=" ".join)
@pytest.mark.parametrize("name", ["frame", "decoder", "masks"])
def test_rtx_compiles_the_graphs_without_a_message(bundle: Bundle, name: str, targets: tuple[str, ...]) -> None:
    if name not in bundle.manifest.graphs:
        pytest.skip("the frame graph of EoMT is its decoder too")
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    if targets == ("7.5",) and bundle.manifest.graphs[name].precision == "fp32":
        pytest.skip("TensorRT-RTX has no products of FP32 matrices for 7.5")
    symbols = {axis for tensor in bundle.manifest.graphs[name].inputs.values() for axis in tensor.shape}
    profile = {symbol: sizes for symbol, sizes in PROFILES[name].items() if symbol in symbols}
    request = build_request(bundle, name, profile, targets)
    built = build_engine(load_tensorrt("tensorrt-rtx"), request)
    assert len(built.data) > 5_000
    assert not built.warnings


def test_a_network_for_one_size_computes_what_it_did_at_that_size() -> None:
    plain, fixed = network(), network()
    fixed.embeddings.fix_size(HEIGHT, WIDTH)
    images = torch.randn(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        for ours, theirs in zip(fixed(images), plain(images), strict=True):
            torch.testing.assert_close(ours, theirs)
