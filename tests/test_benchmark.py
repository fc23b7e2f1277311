"""The benchmark: that its work is the work, that it counts right, and that its lines hold what they should."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import benchmark
from bench import flops, hotspots, meter, parts, peers, recipe, scaling
from metarun.compiled.task_map import default_layout
from metarun.config.search_path import conf_dir
from metarun.errors import MetarunError
from metarun.models.conv4 import conv4
from metarun.models.convolution import convolve

SMALL = recipe.Work((8, 8, 1), 4, "stride", inner_lr=0.1, inner_steps=1, meta_batch_size=2, way=2, query_shot=2)
SCRIPTS = Path(benchmark.__file__).parent


@pytest.mark.slow
def test_loss_and_meta_gradients_of_a_are_those_of_other_libraries(capsys):
    assert benchmark.main(["--config", "A", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # torch.func 2.13 on the same inputs and weights, in float32; the gradients' norms.
    theirs = {"loss": 1.419693, "second_order": 15.429129, "first_order": 3.140124}
    assert found == {"config": "A", **{name: pytest.approx(value, rel=3e-5) for name, value in theirs.items()}}


@pytest.mark.parametrize("config", recipe.CONFIGS)
def test_the_weights_are_those_of_the_model(config):
    work = recipe.CONFIGS[config]
    model = conv4(num_outputs=work.way, filters=work.filters, downsample=work.downsample)
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *work.image)))
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(recipe.weights(work)) == shapes(expected)


def test_a_step_draws_tasks_of_the_recipe():
    tasks = recipe.dataset(SMALL, default_layout())
    drawn = tasks.train.sample(tasks.train.data, jax.random.key(0))
    batches = [batch for batch, _ in zip(recipe.meta_batches(SMALL), range(recipe.NUM_META_BATCHES), strict=False)]
    found = [
        (i, j)
        for i, batch in enumerate(batches)
        for j in range(SMALL.meta_batch_size)
        if np.array_equal(batch.query.x[j], drawn.query.x) and np.array_equal(batch.support.x[j], drawn.support.x)
    ]
    assert len(found) == 1
    np.testing.assert_array_equal(drawn.query.y, [0, 0, 1, 1])


def test_line_of_speed(capsys, monkeypatch):
    monkeypatch.setitem(recipe.CONFIGS, "A", SMALL)
    monkeypatch.setattr(meter, "_SIDES", {"cpu": (32,)})
    assert benchmark.main(["--json", "--seconds", "0.01"]) == 0
    line = json.loads(capsys.readouterr().out)
    positive = ["tasks_per_s", "peak_rss_mb", "flops_per_task", "matmul_gflops", "fraction_of_matmul_peak"]
    positive += ["first_step_s", "compile_s", "ms_per_step", "steps", "last_loss"]
    assert all(line[name] > 0 for name in positive)
    assert set(positive) < set(line) and line["config"] == "A"
    assert line["num_devices"] == 2 and line["device"].startswith("2 x ")
    assert line["compile_cache"] in ("warm", "partly warm", "cold")
    assert {"peak_device_mb", "cpu_over_wall", "others_cores", "steal_cores"} < set(line)
    assert line["versions"]["jax"] == jax.__version__


def multiply_adds_of_a():
    """By hand, a task of A: a convolution of 3x3 costs nine multiply-adds a pixel, input and output channel."""
    sides, channels = (14, 7, 4, 2), (1, 64, 64, 64)
    first, *others = (side**2 * 9 * inputs * 64 for side, inputs in zip(sides, channels, strict=True))
    others = sum(others) + 2 * 2 * 64 * 5  # the linear layer
    # A pass, the gradient in its input (not in the images) and in its kernel; each has two derivatives in turn.
    query = 75 * (2 * first + 3 * others)
    support = 5 * (4 * first + 9 * others)
    return query + support


def test_flops_of_a_are_those_counted_by_hand():
    work = recipe.CONFIGS["A"]
    task = jax.tree.map(lambda x: x[0], next(recipe.meta_batches(work)))
    counted = flops.count_flops(jax.grad(recipe.outer_loss(work)), recipe.weights(work), task)
    assert counted == pytest.approx(2 * multiply_adds_of_a(), rel=0.03)


def test_the_loss_that_is_counted_is_that_of_metaruns_own_method():
    work = SMALL._replace(inner_steps=2)
    method, task = recipe.method(work), jax.tree.map(lambda x: x[0], next(recipe.meta_batches(work)))
    own = jax.grad(lambda params: method.loss(params, task, jax.random.key(0))[0])(recipe.weights(work))
    counted = jax.grad(recipe.outer_loss(work))(recipe.weights(work), task)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), own, counted)


def test_flops_of_a_convolution_of_metaruns_own_are_those_of_its_form():
    found = flops.count_flops(lambda x, kernel: convolve(x, kernel, 1), jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 5)))
    assert found == 2 * 2 * 8 * 8 * 9 * 4 * 5


def ten_products(x, y):
    return lax.scan(lambda x, _: (x @ y, None), x, None, length=10)[0]


def half_needed(x, y):
    return jax.jit(lambda x, y: (x @ y, x @ (y @ y)))(x, y)[0]


@pytest.mark.parametrize(
    "fn, expected",
    [
        (lambda x, y: x @ y, 2 * 3 * 4 * 4),
        (ten_products, 10 * 2 * 3 * 4 * 4),
        (half_needed, 2 * 3 * 4 * 4),
        (lambda x, y: lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x), 2 * 3 * 4 * 4),
        (lambda x, y: jnp.sin(x) + 1, 0),
    ],
    ids=["product", "scan", "unneeded", "cond", "none"],
)
def test_flops_of(fn, expected):
    assert flops.count_flops(fn, jnp.ones((3, 4)), jnp.ones((4, 4))) == expected


def test_flops_of_a_convolution():
    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.count_flops(convolve, jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))) == 2 * 2 * 4 * 4 * 9 * 3 * 5


def test_flops_of_a_loop_of_unknown_length_are_refused():
    with pytest.raises(MetarunError, match="unknown length"):
        flops.count_flops(lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x), jnp.ones((3, 3)))


def test_load_is_in_cores():
    load = meter.Clock(12.0, 3.0, 20.0, 1.5).load(meter.Clock(2.0, 1.0, 10.0, 1.0))
    assert load == {"cpu_over_wall": 0.2, "others_cores": 0.8, "steal_cores": 0.05}
    unknown = meter.Clock(12.0, 3.0, None, None).load(meter.Clock(2.0, 1.0, None, None))
    assert unknown == {"cpu_over_wall": 0.2, "others_cores": None, "steal_cores": None}


def line(rate, memory=100):
    return {"tasks_per_s": rate, "peak_rss_mb": memory, "others_cores": 0.25, "steal_cores": None}


def test_ratios_to_the_best_peer():
    rounds = {"metarun": [line(30, 90), line(20, 80), line(40, 85)], "slow": [line(10), line(10), line(50)]}
    rounds["fast"] = [line(20), line(16), line(20)]
    found = peers.summary(rounds)
    assert found["best_peer"] == "fast" and found["ratio"] == 1.5
    assert found["round_ratios"] == [1.5, 1.25, 0.8]
    assert found["median"]["metarun"] == {"tasks_per_s": 30, "peak_rss_mb": 85}
    text = peers.table({"rounds": rounds, **found})
    assert "| metarun | 30 | 20 to 40 | 85 | 0.25 |" in text and "1.50 times fast" in text


PEER = (
    'import json, os, sys; print("note"); print(json.dumps({"tasks_per_s": 2, "peak_rss_mb": 1, "got": sys.argv[1:], '
)
PEER += '"path": os.environ.get("PYTHONPATH"), "others_cores": 0, "steal_cores": 0}))'


def test_peers_run_in_turn_with_metarun(tmp_path, monkeypatch, capsys):
    (tmp_path / "peer.py").write_text(PEER)
    known = {"one": ("json", "peer.py", ("--mode", "x")), "other": ("json", "peer.py", ())}
    monkeypatch.setattr(peers, "PEERS", {**known, "absent": ("no_such_library", "peer.py", ())})
    monkeypatch.setenv("PYTHONPATH", "ours")
    measure, order = peers.line_of, []

    def measured(command, *, own):
        order.append("metarun" if own else command[-1])
        return line(3) if own else measure(command, own=own)

    monkeypatch.setattr(peers, "line_of", measured)
    found = peers.compare("B", Path(sys.executable), tmp_path, rounds=2, seconds=1.5)
    assert order == ["metarun", "x", str(peers._MOST_STEPS)] * 2
    assert found["ratio"] == 1.5 and set(found["rounds"]) == {"metarun", "one", "other"}
    first = found["rounds"]["one"][0]
    assert first["path"] is None and first["got"][:4] == ["--config", "B", "--seconds", "1.5"]
    assert "has no no_such_library" in capsys.readouterr().err


def test_a_peer_that_fails_is_told_with_its_words(tmp_path):
    (tmp_path / "peer.py").write_text("raise SystemExit('out of luck')")
    with pytest.raises(MetarunError, match="peer.py failed:\nout of luck"):
        peers.line_of([sys.executable, str(tmp_path / "peer.py")], own=False)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--peers", sys.executable], "--peer-scripts"),
        (["--peers", "/no/such/python", "--peer-scripts", "."], "/no/such/python cannot be run"),
    ],
)
def test_mistakes_are_one_message(arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--rounds", "-1"], ["--seconds", "nan"], ["--config", "D"]])
def test_arguments_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_operations_of_a_program():
    text = """HloModule jit_dispatch
  ROOT %dot_general.3 = f32[5,64]{1,0} dot(%a, %b), metadata={op_name="jit(f)/while/body/jvp(net)/conv1/dot_general"}
  %all-reduce = (f32[3]{0}, f32[]) all-reduce(%c)
  %while.1 = (f32[3]{0}) while(%d)"""
    operations = hotspots._operations(text)
    dot = hotspots.Operation("dot_general", "f32[5,64]", "jvp(net) conv1 dot_general")
    assert operations["dot_general.3"] == dot
    assert operations["all-reduce"] == hotspots.Operation("all-reduce", "tuple", "")
    events = [("dot_general.3", 1.0), ("while.1", 9.0), ("dot_general.3", 2.0), ("copy.4.clone", 0.5)]
    seconds, calls = hotspots._sums(iter(events), operations)
    assert seconds == {dot: 3.0, hotspots.Operation("copy", "", ""): 0.5} and calls[dot] == 2
    assert "| 1500.00 | 85.7% | 1.0 | dot_general | f32[5,64] |" in hotspots._table(seconds, calls, 2)


@pytest.mark.slow
def test_profile_of_a_step(tmp_path):
    code = f"""
import sys
sys.path[:0] = {[str(SCRIPTS), str(Path(__file__).parent)]}
from pathlib import Path
from bench import hotspots
hotspots.enable_tracing()
from metarun.system import backend
from metarun.data.cache import cache_dir
backend.set_up(cache_dir() / "compiled")
from bench import recipe
from metarun.compiled.task_map import default_layout
work = recipe.CONFIGS["A"]._replace(image=(8, 8, 1), filters=4, meta_batch_size=2)
print(hotspots.profile(recipe.experiment(work, default_layout()), Path({str(tmp_path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines()[3:]]
    assert any("conv0" in row[-1] for row in rows)
    assert all(0 < float(row[1].rstrip("%")) <= 100 for row in rows)
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_size_is_timed_and_its_memory_predicted():
    point = scaling.measure(default_layout(), 0.01, sizes={"meta-batch": [SMALL]})["meta-batch"][2]
    held = jax.tree.leaves(recipe.dataset(SMALL, default_layout()).train.data)
    params = sum(leaf.size for leaf in jax.tree.leaves(recipe.weights(SMALL)))
    assert point.tasks_per_s > 0
    # The tasks, and the parameters with Adam's two moments, are the least that a device holds.
    assert point.predicted_bytes > sum(leaf.nbytes for leaf in held) + 3 * 4 * params


def test_of_the_peer_the_fastest_form_counts_that_computes_the_same(tmp_path, capsys):
    task = jax.tree.map(lambda x: x[0], next(recipe.meta_batches(SMALL)))
    loss = float(jax.jit(recipe.outer_loss(SMALL))(recipe.weights(SMALL), task))
    lines = {"contiguous": (3.0, loss), "channels_last": (9.0, 1.02 * loss), "vmap": (5.0, loss)}
    peer = tmp_path / "peer"
    peer.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"rate, loss = {lines!r}[sys.argv[sys.argv.index('--mode') + 1]]\n"
        "print(json.dumps({'tasks_per_s': rate, 'first_loss': loss}))"
    )
    peer.chmod(0o755)
    found = scaling.measure(default_layout(), 0.01, str(peer), sizes={"meta-batch": [SMALL]})
    assert found["meta-batch"][2].peer_tasks_per_s == 5.0
    assert "channels_last, is left out" in capsys.readouterr().err


def test_scaling_as_table_and_picture(tmp_path):
    found = {"way": {2: scaling.Point(20.0, 2_000_000), 5: scaling.Point(10.0, 5_500_000, 4.0)}}
    scaling.write(found, tmp_path, "a device")
    text = (tmp_path / "scaling.md").read_text()
    assert "a device" in text and "| way | 2 | 20 | | | 2.0 |" in text and "| way | 5 | 10 | 4 | 2.50 | 5.5 |" in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert scaling.plain(found)["way"][1] == {
        "value": 5,
        "tasks_per_s": 10.0,
        "predicted_bytes": 5_500_000,
        "peer_tasks_per_s": 4.0,
    }


def test_every_scaling_axis_varies_its_own_size():
    for axis, works in scaling.SIZES.items():
        values = [scaling.VALUES[axis](work) for work in works]
        assert len(set(values)) == len(values) and scaling.BASE in works


@pytest.fixture
def steps_at_ten_tasks_per_s(monkeypatch):
    """Takes the place of timing; the list gets every experiment that would be timed."""
    experiments = []

    def time_steps(experiment, seconds):
        experiments.append(experiment)
        return meter.Timing(10.0, 1.0, 0.1, 10, 0.5, {})

    monkeypatch.setattr(meter, "time_steps", time_steps)
    return experiments


@pytest.mark.slow
def test_streaming_is_held_against_images_on_the_device(monkeypatch):
    monkeypatch.setattr(parts, "_CLASSES", 6)
    monkeypatch.setattr(parts, "_IMAGES", 20)
    found = parts.streaming(SMALL, default_layout(), 2, 0.01)
    assert found["bank_mb"] == round(6 * 20 * np.prod(SMALL.image) / 1e6)
    low, high = found["ratio_by_round"]
    assert 0 < low <= found["ratio"] <= high and found["streamed_tasks_per_s"] > 0


def test_sampler_is_held_against_a_step(steps_at_ten_tasks_per_s, monkeypatch):
    monkeypatch.setattr(meter, "repeat", lambda call, seconds: len(call().query.y) / 200)
    assert parts.sampler(default_layout(), 0.01) == {
        "tasks_per_s": 200.0,
        "step_tasks_per_s": 10.0,
        "percent_of_step": 5.0,
    }


def test_evaluation_alone(monkeypatch):
    monkeypatch.setattr(parts, "WORK", SMALL._replace(image=(28, 28, 1)))
    monkeypatch.setattr(parts, "_EVALUATED", 2)
    found = parts.evaluation(default_layout())
    assert found["tasks"] == 2 and 0 < found["seconds"] < found["seconds_with_compiling"]


@pytest.mark.slow
def test_every_method_is_timed(steps_at_ten_tasks_per_s):
    names = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
    assert parts.methods(1.0) == dict.fromkeys(names, 10.0)
    assert [experiment.tasks_per_step for experiment in steps_at_ten_tasks_per_s] == [32] * len(names)
