"""What a user types: results on stdout, one clear line on stderr, exit codes."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from biggraph import api, cli
from biggraph.train import local

ROWS = "".join(f"p{i}\tknows\tp{(i * k + k) % 20}\n" for i in range(20) for k in (1, 2, 3))
RUN_FILE = """
[graph]
path = "graph"
[model]
dimension = 8
[train]
epochs = 2
threads = 1
[eval]
every = 1
[checkpoint]
path = "run"
"""


class Outcome:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def biggraph(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder, as `main` does."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["biggraph", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """A folder with edges, run file, graph and run, made once."""
    folder = tmp_path_factory.mktemp("main-job")
    (folder / "edges.tsv").write_text(ROWS)
    (folder / "run.toml").write_text(RUN_FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        holdout = {"valid": 0.1, "test": 0.1}
        api.import_graph(["edges.tsv"], "graph", holdout=holdout, quiet=True)
        api.train("run.toml", quiet=True)
    return folder


@pytest.fixture
def trained(biggraph, main_job, tmp_path):
    """The command line in a copy of the main job's folder."""
    shutil.copytree(main_job, tmp_path, dirs_exist_ok=True)
    return biggraph


def test_the_main_job(trained, tmp_path):
    evaluated = trained("eval", "run", "--json", "test.json", "-q")
    assert evaluated.code == 0
    assert "mrr" in evaluated.out
    values = json.loads((tmp_path / "test.json").read_text())
    assert {"split", "filtered", "mrr", "hits@1", "hits@3", "hits@10"} <= values.keys()
    assert 0 < values["mrr"] <= 1
    baseline = trained("eval", "run", "--baseline", "--raw", "--per-relation", "-q")
    assert baseline.code == 0
    assert "knows" in baseline.out
    neighbors = json.loads(trained("neighbors", "run", "p1", "-k", "3", "--json").out)
    assert len(neighbors) == 3
    assert all(row["name"] != "p1" for row in neighbors)
    predicted = trained("predict", "run", "--head", "p1", "--relation", "knows", "-k", "30")
    assert predicted.code == 0
    names = {line.split()[0] for line in predicted.out.splitlines()[1:]}
    # Neither itself nor what it is known to know: (1 * k + k) % 20 for k = 1, 2, 3.
    assert names == {f"p{i}" for i in range(20)} - {"p1", "p2", "p4", "p6"}
    for format in ("parquet", "npy", "tsv", "word2vec"):
        assert trained("export", "run", "--format", format, "--out", f"out-{format}").code == 0
    for path in ("graph", "run"):
        shown = trained("inspect", path, "--verify")
        assert shown.code == 0, shown.err
        assert "verified" in shown.err
        assert json.loads(trained("inspect", path, "--json").out)


def test_training_goes_on_and_restarts(trained):
    again = trained("train", "run.toml", "train.epochs=3", "--json", "-q")
    assert json.loads(again.out)["epochs"] == 3
    assert json.loads(again.out)["edges"] > 0
    done = trained("train", "run.toml", "train.epochs=3", "--json", "-q")
    assert json.loads(done.out)["edges"] == 0
    anew = trained("train", "run.toml", "model.dimension=4", "--restart", "--json", "-q")
    assert json.loads(anew.out)["epochs"] == 2


BAD = [
    (("train", "none.toml"), "none.toml: no such run file"),
    (("train", "run.toml", "model.operator=complx"), 'did you mean "complex_diagonal"?'),
    (("train", "run.toml", "model.dimension=10"), "begun with model.dimension = 8, found 10"),
    (("train", "run.toml", "graph.path=nowhere"), "nowhere"),
    (("train", "run.toml", "checkpoint.path=."), "holds something else"),
    (("train", "run.toml", "checkpoint.path=graph"), "inside the graph directory"),
    (("train", "run.toml", "--restart", "train.memory=9"), "needs"),
    (("import", "none.tsv", "--out", "g2"), "none.tsv"),
    (("import", "edges.tsv", "--out", "graph"), "graph"),
    (("import", "edges.tsv", "--out", "run"), "run"),
    (("import", "edges.tsv", "--out", "g2", "--holdout", "valid"), "expected valid=0.05,test=0.05"),
    (("import", "edges.tsv", "--out", "g2", "--memory", "much"), '"1GiB"'),
    (("eval", "nowhere"), "nowhere: does not exist"),
    (("eval", "graph"), "graph: is not a run"),
    (("eval", "run", "--split", "tset"), "tset"),
    (("eval", "run", "--candidates", "few"), 'expected "all" or a number'),
    (("eval", "run", "--snapshot", "none"), 'no snapshot "none"'),
    (("eval", "run", "--candidates", "²"), 'expected "all" or a number'),
    (("eval", "run", "--json", "missing/test.json"), "there is no folder missing"),
    (("eval", "run", "--graph", "run"), "run"),
    (("neighbors", "run", "p1x"), 'no entity "p1x"'),
    (("predict", "run", "--head", "p1", "--relation", "know"), 'did you mean "knows"?'),
    (("predict", "run", "--relation", "knows"), "head"),
    (("predict", "run", "--head", "p1", "--tail", "p2", "--relation", "knows"), "head"),
    (("export", "run", "--format", "tsv", "--out", "edges.tsv"), "edges.tsv"),
    (("inspect", "nowhere"), "nowhere"),
    (("inspect", "edges.tsv"), "edges.tsv"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_line_and_exit_code_2(trained, tmp_path, arguments, message):
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert outcome.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("parent", [None, "1"])
def test_a_mistake_says_which_local_worker_met_it(biggraph, monkeypatch, parent):
    environment = local._environment("worker-1") if parent else {local.WORKER_VARIABLE: "w"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = biggraph("inspect", "nowhere")
    assert outcome.err.startswith("worker-1: error: nowhere" if parent else "error: nowhere")


def test_damage_is_reported_not_computed_with(trained, tmp_path):
    for partition in (tmp_path / "run").glob("parts/**/*.h5"):
        data = bytearray(partition.read_bytes())
        data[-5] ^= 1
        partition.write_bytes(data)
    for command in (("eval", "run"), ("neighbors", "run", "p1"), ("inspect", "run", "--verify")):
        outcome = trained(*command, *(["-q"] if command[0] == "eval" else []))
        assert outcome.code == 2, command
        assert "damaged" in outcome.err
        assert ".h5" in outcome.err


VERBS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example(verb):
    shown = CliRunner().invoke(cli.app, [verb, "--help"])
    assert shown.exit_code == 0
    last = " ".join(shown.output.split("Example:")[1].split())
    assert last.startswith(f"biggraph {verb} ")


@pytest.mark.multiprocess
def test_python_m_biggraph_runs():
    command = [sys.executable, "-m", "biggraph", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    for verb in ("import", "train", "eval", "neighbors", "predict", "export", "inspect"):
        assert verb in shown.stdout
