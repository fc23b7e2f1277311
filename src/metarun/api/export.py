"""A trained learner as files that need JAX alone: `adapt` and `predict` as serialized StableHLO.

The parameters lie beside the two functions, so that the files are small and the parameters can be looked at. What XLA
promises of such files is JAX's: https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
"""

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import files
from itertools import product
from pathlib import Path
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from metarun.api import loader
from metarun.api.learner import Functions
from metarun.api.run import Run
from metarun.config import directories
from metarun.data.standardizing import as_lists
from metarun.errors import ConfigError, MetarunError, in_a_line, positive_int, some
from metarun.system.files import json_bytes, plain, write_bytes
from metarun.system.machine import versions
from metarun.training.checkpoint import named_leaves
from metarun.training.ensemble import members_of
from metarun.training.run_state import selected_steps
from metarun.types import Split

ABOUT, LOADER, PARAMS, READER = "export.json", "load.py", "params.npz", "flatbuffers.zip"
ADAPT, PREDICT = "adapt.stablehlo", "predict.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
CLOSE = 1e-6  # how far the answers of the files may be from metarun's own
_SHOWN = 300  # characters of what JAX says
_ASKED = (3, 8)  # numbers of queries that are tried


def export(
    run: Run, output: str | Path, *, way: int | None = None, shot: int | None = None, query_statistics: str = "auto"
) -> dict[str, Any]:
    """Writes the learner of a run to a folder, tries it, and returns what `export.json` says.

    The learner adapts to `way * shot` examples, or to any number where the method can be lowered so; it answers any number
    of queries.

    Args:
      run: finished or not.
      output: the folder; made if need be.
      way: classes of a task; None: as the run was trained.
      shot: examples of a class; None: as the run was trained.
      query_statistics: as in `Run.adapt`.

    Raises:
      MetarunError: the run is one of reinforcement learning; the method cannot be lowered, or answers differently then;
        the folder has other files than those of an export, or is one of those that a run is made of.
    """
    _refuse_others_folder(Path(output).expanduser(), run.directory)
    functions = run.functions(None if way is None else positive_int("way", way), query_statistics)
    shots = positive_int("shot", run.config["shot"] if shot is None else shot)
    data, parameters = functions.data, jax.device_get(run.params)
    examples = shots * (data.num_outputs if data.objective == "classification" else 1)
    failed = ""
    # The most that can be had: any number of examples, on every platform.
    for number, platforms in product((None, examples), (PLATFORMS, PLATFORMS[:1])):
        try:
            adapt, predict = _lowered(functions, parameters, number, platforms)
            about = _described(run, functions, parameters, number, platforms)
            contents = _contents(about, parameters, adapt, predict)
            about["largest_difference"] = _tried(contents, run, functions, examples, query_statistics)
        except Exception as error:  # of many kinds: JAX's, for what it cannot lower, and XLA's
            failed = in_a_line(error)
            continue
        for name, content in {**contents, ABOUT: json_bytes(plain(about))}.items():
            try:
                write_bytes(Path(output).expanduser() / name, content)
            except MetarunError as error:
                if isinstance(error.__cause__, OSError):
                    raise ConfigError(
                        "output", output, f"a folder that can be written in ({error.__cause__})"
                    ) from error
                raise
        return about
    raise MetarunError(
        f"method={run.choices['method']} cannot be exported: {failed[:_SHOWN]}. Use it from Python instead: "
        "metarun.load(DIR).adapt(x, y)."
    )


def _refuse_others_folder(output: Path, directory: Path) -> None:
    """Raises `ConfigError` where files of an export would lie among others, or those of others would be replaced."""
    new = "a new folder, such as output=exported, or that of an earlier export"
    if output.exists() and not output.is_dir():
        raise ConfigError("output", output, f"{new}; this is a file")
    of_export = {ABOUT, LOADER, PARAMS, READER, ADAPT, PREDICT, "__pycache__"}
    if output.is_dir() and (others := sorted({file.name for file in output.iterdir()} - of_export)):
        raise ConfigError("output", output, f"{new}; this one has {some(others)}")
    output, directory = output.resolve(), directory.resolve()
    if output.is_relative_to(directory) and {*output.relative_to(directory).parts[:1]} & {*directories.FOLDERS}:
        raise ConfigError("output", output, f"{new}; this one is a part of the run in {directory}")


def _described(
    run: Run, functions: Functions, parameters: Any, number: int | None, platforms: Sequence[str]
) -> dict[str, Any]:
    data, classification = functions.data, functions.data.objective == "classification"
    pictures = data.ground is not None
    return {
        "method": run.choices["method"],
        "trained_on": run.choices["dataset"],
        "steps": run.saved.checkpoint.step,
        "selected_steps": selected_steps(run.saved.checkpoint),
        "classification": classification,
        "way": data.num_outputs if classification else None,
        "num_outputs": data.num_outputs,
        "x": "uint8 from 0 black to 255 white, or floats in [0, 1]" if pictures else "real numbers",
        "x_shape": [None, *data.input_shape],
        "pictures": pictures,
        "standardized": as_lists(functions.standard),
        "y": "whole numbers from 0; column k of the answers is class k" if classification else "numbers",
        "y_shape": [None] if classification else [None, data.num_outputs],
        "y_dtype": "int32" if classification else "float32",
        "examples": number,
        "queries": None,
        "query_statistics": functions.method.protocol.get("query_statistics"),
        "queries_depend_on_each_other": functions.together,
        "platforms": list(platforms),
        "params": list(named_leaves(parameters)),
        "versions": versions(),
    }


def _contents(
    about: Mapping[str, Any], parameters: Any, adapt: jax_export.Exported, predict: jax_export.Exported
) -> dict[str, bytes]:
    """The files by their names."""
    stream = io.BytesIO()
    np.savez(stream, **named_leaves(parameters))
    return {
        ABOUT: json_bytes(plain(about)),
        LOADER: Path(loader.__file__).read_bytes(),
        PARAMS: stream.getvalue(),
        ADAPT: bytes(adapt.serialize()),
        PREDICT: bytes(predict.serialize()),
        READER: _reader(),
    }


def _reader() -> bytes:
    """FlatBuffers, by which JAX reads the functions and which it does not install: a zip of Python that can be imported."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path(flatbuffers.__file__).parent.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"flatbuffers/{file.name}"), file.read_bytes())
        # It is under the licence that JAX is under, and goes with a copy of it.
        for licence in [file for file in files("jax") or () if file.name == "LICENSE"]:
            archive.writestr(zipfile.ZipInfo("flatbuffers/LICENSE"), licence.read_text())
    return stream.getvalue()


def _tried(
    contents: Mapping[str, bytes], run: Run, functions: Functions, examples: int, query_statistics: str
) -> float:
    """How far the answers of the files are from metarun's own on random inputs.

    Raises:
      ValueError: further than `CLOSE`.
    """
    data, draw = functions.data, np.random.default_rng(0)
    shape = data.input_shape
    x = draw.random((examples, *shape), np.float32)
    y: Any = np.arange(examples) % data.num_outputs
    if data.objective != "classification":
        y = draw.standard_normal((examples, data.num_outputs)).astype(np.float32)
    own = run.adapt(x, y, query_statistics=query_statistics)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            write_bytes(Path(folder) / name, content)
        read = loader.Learner(Path(folder))
        adapted, worst = read.adapt(x, y), 0.0
        for number in _ASKED:
            queries = draw.random((number, *shape), np.float32)
            expected = own.predict(queries) if own.classes else own.outputs(queries)
            difference = np.abs(np.asarray(read.predict(adapted, queries)) - expected)
            worst = max(worst, float((difference / np.maximum(1, np.abs(expected))).max()))
    if not worst <= CLOSE:
        raise ValueError(f"its answers differ by {worst:.1e} once it is exported, more than {CLOSE:.0e}")
    return worst


def _lowered(
    functions: Functions, parameters: Any, number: int | None, platforms: Sequence[str]
) -> tuple[jax_export.Exported, jax_export.Exported]:
    """`(leaves, x, y) -> adapted leaves` and `(adapted leaves, x) -> outputs`, for so many examples, None: any, and any queries."""
    tree, data = jax.tree.structure(parameters), functions.data
    method = functions.method
    examples, queries = jax_export.symbolic_shape("examples, queries")
    count = examples if number is None else number
    structure: list[Any] = []

    def adapt(leaves: Sequence[Any], x: Any, y: Any) -> Sequence[Any]:
        members = members_of(jax.tree.unflatten(tree, leaves))
        state = [method.adapt(member, Split(x, y), jax.random.key(0)) for member in members]
        structure[:] = [jax.tree.structure(state)]
        return jax.tree.leaves(state)

    def predict(leaves: Sequence[Any], x: Any) -> Any:
        outputs = [method.predict(state, x) for state in jax.tree.unflatten(structure[0], leaves)]
        return outputs[0] if len(outputs) == 1 else sum(outputs[1:], outputs[0]) / len(outputs)

    def of(shape: Sequence[Any], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(shape), dtype)

    targets = of([count], jnp.int32) if data.objective == "classification" else of([count, data.num_outputs])
    given = [of(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(parameters)]
    lower = lambda function: jax_export.export(jax.jit(function), platforms=platforms)
    adapted = lower(adapt)(given, of([count, *data.input_shape]), targets)
    states = [of(each.shape, each.dtype) for each in adapted.out_avals]
    return adapted, lower(predict)(states, of([queries, *data.input_shape]))
