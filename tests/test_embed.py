"""`scripts/embed.py`: from a folder of pictures to features."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_run import arrays_in, begun, draw_classes

import embed
from metarun.assembly import saved_run
from metarun.assembly.few_shot_run import build_learner, recorded, shapes_of
from metarun.data.arrays import arrays
from metarun.data.image_folder import image_folder
from metarun.few_shot.learner import Adapted
from metarun.training.run_state import load_selected

DATA = ["dataset.image_size=8", "dataset.channels=1", "way=2", "query_shot=1", "eval_query_shot=2"]
SMALL = ["model.filters=4", "model.halvings=2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "own"
    draw_classes(folder, num_classes=12, count=4)
    return folder


def test_the_encoder_of_a_run_gives_what_its_learner_sees(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    data = ["dataset=image_folder", f"dataset.source={pictures}", *DATA]
    run = begun(tmp_path / "run", *data, "method=pretrain", *SMALL, "model.norm=layer")
    embed.main([str(pictures), str(tmp_path / "features.npz"), "--encoder", str(run)])
    found = arrays_in(tmp_path / "features.npz")
    assert found["x"].shape == (48, 2 * 2 * 4) and found["y"][5] == "01" and found["picture"][5] == "01/1.png"
    # A linear last layer with equal weights adds up the features: what the learner's own answer is made of.
    saved = saved_run.read(str(run), print)
    facts = recorded(saved.checkpoint.metadata["identity"])
    method = build_learner(saved.config, saved.choices, facts)
    params = load_selected(saved.checkpoint, shapes_of(method, facts))
    state = (params["encoder"], {"kernel": jnp.ones((16, 2)), "bias": jnp.zeros(2)})
    images = image_folder.load(source=str(pictures), image_size=8, channels=1).bank.images
    no_reference = jnp.zeros((0, 8, 8, 1))
    outputs = method.predict(Adapted(state, no_reference), images.astype(np.float32) / 255)
    np.testing.assert_allclose(found["x"].sum(1), outputs[:, 0], rtol=1e-3, atol=1e-4)
    assert len(arrays.load(source=str(tmp_path / "features.npz")).names) == 12


def test_features_do_not_depend_on_those_encoded_with_them(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    data = ["dataset=image_folder", f"dataset.source={pictures}", *DATA]
    run = begun(tmp_path / "run", *data, "method=protonet", *SMALL)
    settings = {"image_size": 8, "channels": 1, "invert": False}
    together, apart = (embed.embedded(str(pictures), str(run), batch=batch, **settings)["x"] for batch in (48, 16))
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-4)
    assert np.ptp(together, 0).max() > 0.1


def test_a_function_of_ones_own(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_encoder.py").write_text(
        "def embed(x):\n    assert x.dtype == 'float32' and x.max() <= 1\n    return x.mean((1, 2))\n"
        "def wrong(x):\n    return x.mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_encoder", raising=False)
    for name in ("train/a", "train/b", "test/c"):
        (tmp_path / "split" / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (6, 6), (10 * k, 100, 200)).save(tmp_path / "split" / name / f"{k}.png")
    (tmp_path / "split" / "train/a/notes.txt").write_text("no picture")
    size = ["--image-size", "6"]
    embed.main([str(tmp_path / "split"), "features.npz", "--encoder", "my_encoder:embed", *size])
    said = capsys.readouterr()
    assert "9 rows of 3 features, 3 classes, in features.npz" in said.out and "train/a/notes.txt" in said.err
    found = arrays_in("features.npz")
    assert found["split"].tolist() == ["test"] * 3 + ["train"] * 6 and found["y"][0] == "test/c"
    np.testing.assert_allclose(found["x"][:3] * 255, [[0, 100, 200], [10, 100, 200], [20, 100, 200]], atol=1e-3)
    inverted = embed.embedded("split", "my_encoder:embed", image_size=6, channels=3, invert=True)
    np.testing.assert_allclose(inverted["x"], 1 - found["x"], atol=1e-6)
    for encoder, words in [
        ("nowhere:embed", "--encoder=nowhere:embed: expected a run, MODULE:FUNCTION"),
        ("my_encoder:nothing", "--encoder=my_encoder:nothing"),
        ("my_encoder:wrong", "expected a row each"),
    ]:
        with pytest.raises(SystemExit, match=words):
            embed.main(["split", "more.npz", "--encoder", encoder, *size])
    with pytest.raises(SystemExit, match="PICTURES=nowhere"):
        embed.main(["nowhere", "more.npz", "--encoder", "my_encoder:embed", *size])
    assert not (tmp_path / "more.npz").exists()


def test_a_run_without_an_encoder_is_refused(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    data = ["dataset=image_folder", f"dataset.source={pictures}", *DATA]
    run = begun(tmp_path / "run", *data, "method=nearest_neighbor")
    with pytest.raises(
        SystemExit, match="a run of a method with an encoder, such as pretrain; it is of nearest_neighbor"
    ):
        embed.main([str(pictures), str(tmp_path / "features.npz"), "--encoder", str(run)])


@pytest.mark.filterwarnings("ignore")  # of the package
@pytest.mark.slow
def test_a_model_of_transformers(pictures, tmp_path, monkeypatch, request):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxViTModel"):
        pytest.skip("Flax is gone from this version")
    for setting, value in [
        ("jax_legacy_prng_key", "allow"),
        ("jax_debug_key_reuse", False),
        ("jax_numpy_dtype_promotion", "standard"),
        ("jax_numpy_rank_promotion", "allow"),
    ]:
        request.addfinalizer(partial(jax.config.update, setting, getattr(jax.config, setting)))
        jax.config.update(setting, value)
    shape = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8}
    model = transformers.FlaxViTModel(transformers.ViTConfig(num_hidden_layers=1, num_attention_heads=2, **shape))
    model.save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "vit")
    found = embed.embedded(
        str(pictures), f"transformers:{tmp_path / 'vit'}", image_size=16, channels=3, invert=False, batch=20
    )
    assert found["x"].shape == (48, 8)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    first = image_folder.load(source=str(pictures), image_size=16).bank.images[0]
    again = model(**processor([np.asarray(first)], return_tensors="np")).pooler_output
    np.testing.assert_allclose(found["x"][:1], again, rtol=1e-3, atol=1e-4)
