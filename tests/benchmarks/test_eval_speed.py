"""What the benchmark of evaluation ranks, what it accepts, and its ratios."""

import json

import numpy as np
import pytest

from biggraph import api
from biggraph.graph.graph import Graph
from tests.evaluate.trained import table


@pytest.fixture(scope="module")
def eval_speed(module_of):
    return module_of("eval_speed")


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    generator = np.random.default_rng(0)
    drawn = {
        (f"e{h}", f"r{r}", f"e{t}") for h, r, t in generator.integers((30, 3, 30), size=(300, 3))
    }
    edges = [(f"e{i}", "r0", f"e{(i + 1) % 30}") for i in range(30)] + sorted(drawn)
    out = tmp_path_factory.mktemp("eval") / "graph"
    splits = {"valid": table(edges[30:50]), "test": table(edges[50:90])}
    api.import_graph(table(edges[:30] + edges[90:]), out, **splits, partitions=2, quiet=True)
    return out


def naive_mrr(arrays, count):
    """Rank the first test triples by loops, with one ComplEx score for both sides."""
    real, imag = np.split(arrays["entities"].astype(np.float64), 2, axis=1)
    vectors, relations = real + 1j * imag, arrays["real"] + 1j * arrays["imag"]
    known = {tuple(edge) for split in ("train", "valid", "test") for edge in arrays[split].tolist()}
    inverse = []
    for lhs, rel, rhs in arrays["test"][:count].tolist():
        tails = (vectors[lhs] * relations[rel] * vectors.conj()).sum(1).real
        heads = (vectors * relations[rel] * vectors[rhs].conj()).sum(1).real
        for scores, truth, edge in (
            (tails, rhs, lambda n, lhs=lhs, rel=rel: (lhs, rel, n)),
            (heads, lhs, lambda n, rel=rel, rhs=rhs: (n, rel, rhs)),
        ):
            others = [n for n in range(len(scores)) if edge(n) not in known]
            inverse.append(1 / (1 + sum(scores[n] > scores[truth] for n in others)))
    return np.mean(inverse)


def test_what_is_ranked_here_is_what_peers_are_given(eval_speed, graph_path, tmp_path, capsys):
    count = eval_speed.write_arrays(Graph.open(graph_path), tmp_path, 8)
    arrays = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    assert arrays["entities"].shape == (30, 8)
    eval_speed.rank_here(str(tmp_path), str(graph_path), f"7,{count}")
    found = json.loads(capsys.readouterr().out)
    assert found["mrr"] == pytest.approx(naive_mrr(arrays, count))
    assert found["mrr_of_first"]["7"] == pytest.approx(naive_mrr(arrays, 7))


def test_the_best_of_the_blocks_are_those_of_the_whole_matrix(
    eval_speed, graph_path, tmp_path, capsys
):
    eval_speed.write_arrays(Graph.open(graph_path), tmp_path, 8)
    eval_speed.top_here(str(tmp_path), str(graph_path), "20", "5")
    rates = json.loads(capsys.readouterr().out)
    assert set(rates) == {"blocked_many", "blocked_one", "whole_many", "whole_one"}


def line(side, rate, **values):
    names = ("ranked_per_s", "triples_per_cpu_s", "peak_rss_mib", "others_cpus", "load")
    facts = {"threads": 1, "side": side, "batch": 8, "triples": 9, "mrr_of_first": {"9": 0.5}}
    return facts | {"triples_per_s": rate, "mrr": 0.5} | dict.fromkeys(names, 2) | values


def test_sides_that_disagree_end_the_benchmark(eval_speed):
    eval_speed.check([line("biggraph", 1), line("pbg", 1, mrr=0.5001)])
    ours = line("biggraph", 1, mrr=0.9, triples=50, mrr_of_first={"9": 0.5, "50": 0.9})
    eval_speed.check([ours, line("pykeen", 1)])  # which ranked the first nine
    with pytest.raises(SystemExit, match=r"pbg found MRR 0\.6"):
        eval_speed.check([line("biggraph", 1), line("pbg", 1, mrr=0.6)])


def test_ratios_are_of_runs_in_the_same_repeat(eval_speed, capsys):
    rates = {"biggraph": (100, 900, 400), "pbg": (100, 300, 50)}
    lines = [line(side, rates[side][repeat]) for repeat in range(3) for side in rates]
    tables = eval_speed.summarise(lines)
    printed = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    (ratio,) = (text for text in printed if text["measurement"] == "ratio")
    assert (ratio["triples_per_s"], ratio["triples_per_cpu_s"], ratio["of_best"]) == (3, 1, 3)
    assert "biggraph / pbg" in tables[1]


def test_a_peer_may_rank_the_first_triples_alone(eval_speed):
    assert eval_speed.first_of(["pykeen=20"], 50) == {"biggraph": 50, "pbg": 50, "pykeen": 20}
    assert eval_speed.first_of(["pbg=99"], 50)["pbg"] == 50
