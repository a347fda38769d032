"""A bundle: the folder that export writes and the runtime opens.

Every file is checked before a native loader sees a byte of it, and loaders are given the checked bytes, never a
path: what was hashed is what is loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.dynamic_axes import CLIPS_SETTING
from visrt.runtime.bundles.manifest import FileSpec, Manifest, StateSpec, manifest_from_json
from visrt.runtime.bundles.onnx_file import check_onnx
from visrt.runtime.errors import BundleError

__all__ = ["MANIFEST", "SHIPPED", "Bundle", "initial_states", "open_bundle", "state_bytes"]

MANIFEST = "manifest.json"
SHIPPED = Path(__file__).resolve().parents[2] / "bundles"
"""Where the bundles are that come with visrt: in the package, or at the root of a checkout."""
MANIFEST_BYTES_MAX = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Its files were checked when it was opened and are checked again when they are read."""

    folder: Path
    manifest: Manifest

    def read(self, spec: FileSpec) -> bytes:
        """The bytes of one file of the manifest; BundleError if they are not what was exported."""
        path = self.folder / spec.file
        data = _read_plain_file(path, spec.bytes)
        if len(data) != spec.bytes:
            raise BundleError(f"{path}: {len(data)} bytes, the manifest says {spec.bytes}; {_what_instead(data)}")
        if hashlib.sha256(data).hexdigest() != spec.sha256:
            raise BundleError(f"{path}: sha256 differs from the manifest's; {_what_instead(data)}")
        return data

    @property
    def sizes(self) -> tuple[Bundle, ...]:
        """A bundle of one size for each size of the network input, the main one first."""
        return tuple(Bundle(self.folder, manifest) for manifest in self.manifest.sizes)

    def with_room_for(self, settings: object) -> Bundle:
        """The bundle with engines for all clips that the `settings` of its method remember, and no fewer than its own
        association says: those that were built before serve where they are enough."""
        clips, own = getattr(settings, CLIPS_SETTING, 0), self.manifest.association
        if clips <= own.get(CLIPS_SETTING, 0):
            return self
        return replace(self, manifest=self.manifest.model_copy(update={"association": {**own, CLIPS_SETTING: clips}}))

    def graph(self, name: str) -> bytes:
        """The ONNX model of graph `name`, whole and without external data.

        Weights that sizes share lie in a file of their own: protobuf merges messages that follow one another.
        """
        spec = self.manifest.graphs[name]
        data = self.read(spec.file) + (b"" if spec.weights is None else self.read(spec.weights))
        check_onnx(data, str(self.folder / spec.file.file))
        return data


def open_bundle(folder: str | Path) -> Bundle:
    """The bundle in `folder`, or of that name among those that come with visrt ("default").

    All its files are checked: present, inside, not linked, size, sha256, ONNX. Raises BundleError that names the file,
    what was found and what was expected.
    """
    folder = Path(folder)
    if not folder.is_dir() and len(folder.parts) == 1 and (SHIPPED / folder / MANIFEST).is_file():
        folder = SHIPPED / folder
    if not folder.is_dir():
        shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")) if SHIPPED.is_dir() else []
        names = (
            f"or a name of those that come with visrt: {', '.join(shipped)}"
            if shipped
            else ("and none comes with this visrt: build its wheel in a checkout that has the folder bundles")
        )
        raise BundleError(f"{folder}: no such folder; expected a bundle, a folder with {MANIFEST}, {names}")
    path = folder / MANIFEST
    bundle = Bundle(folder, manifest_from_json(_read_plain_file(path, MANIFEST_BYTES_MAX), str(path)))
    checked: set[FileSpec] = set()
    for size in bundle.sizes:
        for name, graph in size.manifest.graphs.items():
            size.graph(name)
            checked |= {graph.file, graph.weights or graph.file}
    for spec in bundle.manifest.files():
        if spec not in checked:
            bundle.read(spec)
    return bundle


def state_bytes(values: Array) -> bytes:
    """`values` as a file of a bundle: npy."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def initial_states(bundle: Bundle) -> dict[str, Array]:
    """The initial value of each state tensor by name; zeros where the bundle holds none.

    Raises BundleError for a file that does not match the manifest, or holds NaN or infinity.
    """
    return {name: _initial(bundle, name, spec) for name, spec in bundle.manifest.states.items()}


def _initial(bundle: Bundle, name: str, spec: StateSpec) -> Array:
    if spec.initial is None:
        return np.zeros(bundle.manifest.initial_shape(name), dtype=spec.dtype)
    where = f"{bundle.folder / spec.initial.file}"
    try:
        values: Array = np.load(io.BytesIO(bundle.read(spec.initial)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{where}: not a plain npy array ({error}); export the bundle again") from None
    if values.dtype != spec.dtype or values.shape != spec.shape:
        raise BundleError(
            f"{where}: state {name!r} is {values.dtype} {list(values.shape)}, the manifest says {spec.dtype} "
            f"{list(spec.shape)}; export the bundle again"
        )
    if not np.isfinite(values).all():
        raise BundleError(f"{where}: state {name!r} holds NaN or infinity; export the bundle again")
    return values


def _read_plain_file(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a file of its own: no link of either kind leads out of the folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise BundleError(f"{path}: missing from the bundle; export or download it again") from None
    except OSError as error:
        reason = "a symbolic link, expected a plain file" if path.is_symlink() else error.strerror
        raise BundleError(f"{path}: {reason}; copy the bundle's own files into the folder") from None
    with os.fdopen(descriptor, "rb") as file:
        _refuse_link(os.fstat(descriptor), path)
        return file.read(limit + 1)


def _refuse_link(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a plain file; copy the bundle's own files into the folder")
    # Installers may share the files of a package with their cache by hard links.
    if status.st_nlink != 1 and SHIPPED not in path.resolve().parents:
        raise BundleError(f"{path}: a hard link, {status.st_nlink} names share it; copy the file into the folder")


def _what_instead(data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, run `git lfs pull`"
    if data.lstrip()[:1] == b"<":
        return "it is a web page, download the file again"
    return "it was altered or cut, export or download the bundle again"
