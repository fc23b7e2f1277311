"""`init_from=DIR`: a run begins with the parameters of another."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_run import begun, call, refused

import metarun
from metarun.assembly import few_shot_run, rl_run
from metarun.commands import cli
from metarun.config.composing import composed
from metarun.config.schema import RL
from metarun.errors import ConfigError, MetarunError
from metarun.training import checkpoint
from metarun.training.ensemble import Ensemble

TINY = ["model=mlp", "model.hidden=[8]", "val_tasks=2", "eval_tasks=2", "steps_per_dispatch=2", "eval_every=0"]
PROTONET = ["method=protonet", *TINY, "meta_batch_size=2"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that has saved its initial parameters, of seed 7."""
    return begun(tmp_path_factory.mktemp("first") / "run", *PROTONET, "seed=7")


def initial(*overrides, part="few_shot"):
    build = rl_run.build if part == RL else few_shot_run.build
    return build(*composed(overrides, part))


def equal(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all((np.asarray(one) == np.asarray(other)).all() for one, other in pairs)


def test_it_begins_with_the_parameters_of_the_other(first):
    theirs = metarun.load(first).params
    run = initial(*PROTONET, f"init_from={first}", "outer_lr=0.1", "way=3", "dataset=glyphs", "seed=1")
    begins, drawn = run.experiment.init(), initial(*PROTONET, "seed=1").experiment.init()
    assert equal(begins.params, theirs) and not equal(drawn.params, theirs)
    assert jax.tree.structure(begins) == jax.tree.structure(drawn)


def test_methods_that_have_the_same_parameters_take_them(tmp_path):
    maml = begun(tmp_path / "run", "method=maml", *TINY, "seed=7")
    for method in ("fomaml", "anil", "reptile"):
        begins = initial(f"method={method}", *TINY, f"init_from={maml}").experiment.init()
        assert equal(begins.params, metarun.load(maml).params)


def test_of_an_ensemble_it_is_the_best(first, tmp_path):
    copy = shutil.copytree(first, tmp_path / "run")
    best = jax.device_get(metarun.load(first).params)
    other = jax.tree.map(lambda leaf: leaf + 1, best)
    saved = checkpoint.newest(copy / "checkpoints", print)
    ranked = [{"step": 7, "value": 1, "ci95": 0}] * 2
    metadata = {**saved.metadata, "ledger": {**saved.metadata["ledger"], "best": ranked}}
    checkpoint.save(copy / "checkpoints", 9, {"selected": Ensemble((best, other))}, metadata)
    one, several = (initial(*PROTONET, f"init_from={directory}") for directory in (first, copy))
    assert equal(several.experiment.init().params, best)
    # The same parameters are the same protocol, wherever they come from.
    assert one.experiment.protocol == several.experiment.protocol


def test_the_protocol_and_the_identity_say_so(first):
    plain, started = initial(*PROTONET), initial(*PROTONET, f"init_from={first}")
    digest = started.experiment.protocol["init_from"]["sha256"]
    assert len(digest) == 64 and "init_from" not in plain.experiment.protocol
    assert {**started.experiment.protocol, "init_from": 0} == {**plain.experiment.protocol, "init_from": 0}
    added = {"init_from": str(first), "init_from.sha256": digest}
    assert started.identity == {**plain.identity, **added} and not {*added} & {*plain.identity}


@pytest.mark.slow
def test_once_begun_the_other_is_not_needed(first, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, "other")
    settings = [*PROTONET, "init_from=other"]
    whole = metarun.train(*settings, steps=4, directory="whole")
    cut = metarun.train(*settings, steps=2, directory="cut")
    assert cut.result["protocol"]["init_from"] == whole.result["protocol"]["init_from"]
    shutil.rmtree("other")
    gone = metarun.train(*settings, steps=4, directory="cut")
    assert equal(gone.params, whole.params) and gone.result["protocol_id"] == whole.result["protocol_id"]
    code, _, err = call(cli.eval_main, capsys, monkeypatch, "run=cut")
    assert code == 0, err
    (file,) = (tmp_path / "cut" / "evaluations").iterdir()
    again = json.loads(file.read_text())
    assert (again["value"], again["protocol_id"]) == (gone.result["value"], gone.result["protocol_id"])
    # A new run needs it, and so does one that begins anew.
    for more in ({"directory": "new"}, {"directory": "cut", "resume": False}):
        with pytest.raises(ConfigError, match="init_from=other: expected the directory of a run"):
            metarun.train(*settings, steps=4, **more)
    # Another beginning is another run.
    with pytest.raises(MetarunError, match="begun with other settings: init_from"):
        metarun.train(*PROTONET, f"init_from={first}", steps=6, directory="cut")
    with pytest.raises(MetarunError, match="begun with other settings: init_from"):
        metarun.train(*PROTONET, steps=6, directory="cut")
    assert not (tmp_path / "new").exists() and metarun.load("cut").result == gone.result


def test_reinforcement_learning_begins_likewise(tmp_path):
    settings = ["method.hidden=4", "env.episodes=4", "eval_tasks=4"]
    other = begun(tmp_path / "run", *settings, "seed=7", part=RL)
    run = initial(*settings, f"init_from={other}", "env.episodes=6", part=RL)
    assert equal(run.experiment.init().params, metarun.load(other).params)
    assert run.experiment.protocol["init_from"]["sha256"] == run.identity["init_from.sha256"]
    with pytest.raises(MetarunError, match="its parameters do not fit: .* is float32 .* there and float32 .* here"):
        initial("method.hidden=5", "env.episodes=4", f"init_from={other}", part=RL)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["model.hidden=[9]"], "dense0/bias is float32 [8] there and float32 [9] here"),
        (["model.hidden=[8,8]"], "dense1/bias is absent there and float32 [8] here"),
        (["method=maml"], "is absent there and float32"),
        (["method=nearest_neighbor"], "is float32 [8] there and absent here"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_first_leaf_named(settings, message, first):
    with pytest.raises(MetarunError) as raised:
        initial(*PROTONET, *settings, f"init_from={first}")
    assert message in str(raised.value) and f"init_from={first}" in str(raised.value)


def test_another_way_fits_where_no_output_stands_for_a_class(tmp_path):
    maml = begun(tmp_path / "run", "method=maml", *TINY, "way=5")
    with pytest.raises(MetarunError, match=r"float32 \[5\] there and float32 \[3\] here"):
        initial("method=maml", *TINY, "way=3", f"init_from={maml}")


def test_a_directory_that_is_no_run_is_refused_by_the_command(first, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for given in ("nowhere", "empty", first / "checkpoints"):
        answer = call(cli.main, capsys, monkeypatch, *PROTONET, f"init_from={given}", "hydra.run.dir=new")
        refused(answer, f"init_from={given}: expected the directory of a run that has saved parameters")
        assert not (tmp_path / "new").exists()


def test_leaves_of_another_type_are_refused(first, tmp_path):
    copy = shutil.copytree(first, tmp_path / "run")
    saved = checkpoint.newest(copy / "checkpoints", print)
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), metarun.load(first).params)
    checkpoint.save(copy / "checkpoints", 1, {"selected": doubles}, saved.metadata)
    with pytest.raises(MetarunError, match=r"dense0/bias is float64 \[8\] there and float32 \[8\] here"):
        initial(*PROTONET, f"init_from={copy}")
