"""Turns a folder of pictures into features: an .npz file for `metarun dataset=arrays`.

python scripts/embed.py PICTURES FEATURES.npz --encoder RUN                          # the encoder of a run of metarun
python scripts/embed.py PICTURES FEATURES.npz --encoder my_encoder:embed             # a function of your own
python scripts/embed.py PICTURES FEATURES.npz --encoder transformers:google/vit-base-patch16-224-in21k

PICTURES has a folder of pictures for each class, as for `dataset=image_folder`; with folders train, val and test above
them, the split is kept. FEATURES.npz gets `x: [n, size]` float32, `y: [n]` the class and `picture: [n]` the file of each
row, `encoder`, and `split: [n]` where there is one.

A function of your own is given `[n, height, width, channel]` float32 in [0, 1], and returns `[n, *feature]`. A name after
`transformers:` is that of a model of the package transformers, which has to be installed, with Flax (before version 5) or
PyTorch; it is downloaded, unless it is a folder. Its first token's features are taken where it has no pooled ones.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metarun.assembly import saved_run
from metarun.assembly.few_shot_run import build_learner, recorded, shapes_of
from metarun.assembly.keys import Keys
from metarun.config.schema import FEW_SHOT
from metarun.data.class_split import ROLES
from metarun.data.decoding import checked_size
from metarun.data.pictures import checked_folder, in_folder, left_out_in_words, read_all
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.training.ensemble import Ensemble
from metarun.training.run_state import load_selected
from metarun.types import Array, Params

Encoder = Callable[[np.ndarray], Any]
BATCH = 100  # pictures that are encoded at once
REFERENCE = 200  # pictures by whose statistics a network normalises that has learnt to do so by those of a set
PREFIX = "transformers:"


def of_run(directory: str, reference: Callable[[tuple[int, ...]], np.ndarray]) -> tuple[Encoder, tuple[int, ...]]:
    """The encoder of a run's learner, and the shape of the images that it takes.

    Args:
      directory: of the run.
      reference: gives the pictures, in the shape that it is given, by whose statistics all are normalised, where the
        network normalises over a set. So the features of a picture do not depend on those encoded with it.

    Raises:
      ConfigError, MetarunError: it is no run on images, or its parameters are not those of an encoder.
    """
    saved = saved_run.read(directory, lambda text: print(text, file=sys.stderr))
    if saved.part != FEW_SHOT:
        raise ConfigError("--encoder", directory, "a run of metarun on images")
    data = recorded(saved.checkpoint.metadata["identity"])
    if len(data.input_shape) != 3:
        raise ConfigError("--encoder", directory, f"a run on images; it is on inputs of shape {list(data.input_shape)}")
    method = build_learner(saved.config, saved.choices, data)
    params = load_selected(saved.checkpoint, shapes_of(method, data))
    if isinstance(params, Ensemble):
        params = params.members[0]  # the best in validation
    encoder = Keys.of(saved.config, saved.choices, FEW_SHOT).call("model", num_outputs=None)
    shape: Any = jax.ShapeDtypeStruct((1, *data.input_shape), np.float32)
    own = encoder_params(params, jax.eval_shape(encoder.init, jax.random.key(0), shape))
    if own is None:
        raise ConfigError(
            "--encoder",
            directory,
            f"a run of a method with an encoder, such as pretrain; it is of {saved.choices['method']}",
        )
    known = reference(data.input_shape) if saved.config.model.get("norm") == "batch" else None
    apply = jax.jit(encoder.apply, static_argnums=2)

    def encode(images: np.ndarray) -> Array:
        if known is None:
            return apply(own, images, None)
        return apply(own, np.concatenate([known, images]), len(known))[len(known) :]

    return encode, data.input_shape


def encoder_params(params: Params, shapes: Params) -> Params | None:
    """The parameters of the encoder among those of a learner: under "encoder", or beside a last layer; None: nowhere."""
    flat = lambda tree: {
        jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    wanted = flat(shapes)
    for candidate in (params.get("encoder") if isinstance(params, dict) else None, params):
        if isinstance(candidate, dict) and wanted.items() <= flat(candidate).items():
            return {name: candidate[name] for name in shapes}
    return None


def of_function(named: str) -> Encoder:
    """The function MODULE:FUNCTION, of the working directory or of a package.

    Raises:
      ConfigError: it cannot be imported.
    """
    module, _, function = named.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError("--encoder", named, f"a run, MODULE:FUNCTION, or {PREFIX}NAME ({error})") from error


def of_transformers(name: str) -> Encoder:
    """A vision model of the package transformers, with its own preprocessing.

    Raises:
      MetarunError: the package is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MetarunError(f"{PREFIX}{name} needs the package transformers: pip install transformers") from error
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    # Flax is gone from version 5.
    flax = transformers.FlaxAutoModel if hasattr(transformers, "FlaxAutoModel") and _has_flax(transformers) else None
    model = (flax or transformers.AutoModel).from_pretrained(name)

    def encode(images: np.ndarray) -> np.ndarray:
        pictures = np.rint(255 * images).astype(np.uint8)
        found = model(**processor(list(pictures), return_tensors="np" if flax else "pt"))
        pooled = getattr(found, "pooler_output", None)
        features = found.last_hidden_state[:, 0] if pooled is None else pooled
        return np.asarray(features if flax else features.detach())

    return encode


def _has_flax(transformers: Any) -> bool:
    return bool(transformers.utils.is_flax_available())


def embedded(
    folder: str, named: str, *, image_size: int, channels: int, invert: bool, batch: int = BATCH
) -> dict[str, np.ndarray]:
    """The arrays of a features file, see above.

    Args:
      folder: of the pictures.
      named: the encoder.
      image_size, channels: of the pictures that an encoder other than a run's is given.
      invert: whether light and dark change places.
      batch: pictures that are encoded at once.

    Raises:
      ConfigError, DataError, MetarunError: the folder or the encoder cannot be used.
    """
    root = checked_folder("PICTURES", folder, "a folder with a folder of pictures for each class")
    files = [file for file in in_folder(root) if len(file.path.parts) > 1]
    if not files:
        raise DataError(f"{root} has no folders with pictures: expected one for each class.")
    left_out: dict[str, str] = {}

    def read(files: Sequence[Any], shape: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
        height, width, channels = shape
        found = list(read_all(files, (height, width, channels), left_out))
        images = np.stack([image for _, image in found]) if found else np.zeros((0, *shape), np.uint8)
        return [str(path) for path, _ in found], (255 - images if invert else images).astype(np.float32) / 255

    def reference(shape: tuple[int, ...]) -> np.ndarray:
        """Pictures of all of the folder, or of meta-training's where it is divided."""
        train = [file for file in files if ROLES.get(file.path.parts[0].casefold()) == "train"] or files
        return read(train[:: max(1, len(train) // REFERENCE)][:REFERENCE], shape)[1]

    side, channels = checked_size(image_size, channels)
    shape: tuple[int, ...] = (side, side, channels)
    if os.path.isdir(os.path.join(named, ".hydra")):
        encode, shape = of_run(named, reference)
    elif named.startswith(PREFIX):
        encode = of_transformers(named.removeprefix(PREFIX))
    else:
        encode = of_function(named)
    names: list[str] = []
    rows: list[np.ndarray] = []
    for start in range(0, len(files), batch):
        its, images = read(files[start : start + batch], shape)
        if its:
            features = np.asarray(encode(images), np.float32)
            if features.ndim < 2 or len(features) != len(images):
                raise MetarunError(
                    f"{named} returned shape {list(features.shape)} for {len(images)} pictures: expected a row each."
                )
            names += its
            rows.append(features.reshape(len(features), -1))
        print(f"\r{min(start + batch, len(files))} of {len(files)} pictures", end="", file=sys.stderr)
    print(file=sys.stderr)
    if left_out:
        print(f"{left_out_in_words(root, left_out)} They are left out.", file=sys.stderr)
    if not names:
        raise DataError(f"{root} has no pictures that can be read.")
    classes = [str(Path(name).parent) for name in names]
    arrays = {"x": np.concatenate(rows), "y": np.array(classes), "picture": np.array(names), "encoder": np.array(named)}
    splits = [ROLES.get(name.split("/")[0].casefold(), "") for name in classes]
    return arrays | ({"split": np.array(splits)} if all(splits) else {})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES")
    parser.add_argument("features", metavar="FEATURES.npz", type=Path)
    parser.add_argument("--encoder", required=True, metavar="ENCODER")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a side, where it is no run's (224)")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3, where it is no run's (3)")
    parser.add_argument("--invert", action="store_true", help="light and dark change places")
    given = parser.parse_args(arguments)
    if given.features.suffix != ".npz":
        parser.error(f"{given.features}: expected the name of a file FEATURES.npz")
    try:
        arrays = embedded(
            given.pictures, given.encoder, image_size=given.image_size, channels=given.channels, invert=given.invert
        )
        np.savez(given.features, **arrays)
    except (MetarunError, OSError) as error:
        sys.exit(f"embed: {error}")
    rows, size = arrays["x"].shape
    print(f"{rows} rows of {size} features, {len(set(arrays['y'].tolist()))} classes, in {given.features}")


if __name__ == "__main__":
    main()
