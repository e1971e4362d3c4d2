"""What the benchmarks behind docs/performance.md set up, and what they make of measurements."""

import json

import pytest

from biggraph.config import load_config


@pytest.mark.parametrize("count", [10, 300])
def test_each_way_gives_an_edge_as_many_negatives(module_of, count):
    sections = {way: module_of("negatives").negatives_of(way, count) for way in ("batched",
                "half own", "unbatched")}  # fmt: skip
    assert (sections["batched"].in_batch, sections["batched"].uniform) == (0, count)
    assert sections["half own"].in_batch == sections["half own"].uniform == count // 2
    # A chunk of one edge meets its own entity alone, which is masked.
    assert (sections["unbatched"].in_batch, sections["unbatched"].uniform) == (1, count)


def test_the_rates_of_all_ways_are_measured(module_of, capsys, monkeypatch):
    options = "--entities 50 --edges 60 --communities 5 --dimension 4 --batch-size 20 --seconds 0"
    arguments = ["negatives.py", *options.split(), "--negatives", "4", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    module_of("negatives").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    runs = [line for line in lines if line["measurement"] == "run"]
    assert [run["way"] for run in runs] == ["batched", "half own", "unbatched"]
    assert all(run["edges_per_s"] > 0 for run in runs)


def test_the_table_of_negatives_has_medians_and_their_ratio(module_of, capsys):
    negatives = module_of("negatives")
    lines = [
        {"way": way, "negatives": count, "edges_per_s": rate * factor}
        for count, factor in ((100, 1), (10, 4))
        for way, rates in (("batched", (900, 300, 100)), ("unbatched", (50, 60, 200)))
        for rate in rates
    ]
    found = negatives.medians(lines)
    assert found == {"batched": {10: 1200, 100: 300}, "unbatched": {10: 240, 100: 60}}
    assert len(capsys.readouterr().out.splitlines()) == 4
    _, ten, hundred = negatives.table_of(found).splitlines()
    assert ten.split() == ["10", "1,200", "240", "5.0"]
    assert hundred.split() == ["100", "300", "60", "5.0"]


def test_a_budget_holds_some_of_the_finest_tables_or_two_at_hand(module_of):
    budget = module_of("partitions").budget
    finest = [11, 10, 10, 9, 9, 9]
    assert budget([58], finest, 4) == 58
    assert budget([30, 28], finest, 4) == 58
    assert budget([16, 15, 14, 13], finest, 4) == 40
    assert budget(finest, finest, 4) == 40


def test_run_files_of_the_partitions_are_valid(module_of, tmp_path):
    text = module_of("partitions").RUN_FILE.format(
        graph=tmp_path, out=tmp_path, order="beta", memory=2**20, dimension=4, in_batch=2,
        uniform=3, epochs=2, threads=1,
    )  # fmt: skip
    (tmp_path / "run.toml").write_text(text)
    config = load_config(tmp_path / "run.toml")
    assert (config.train.bucket_order, config.train.memory) == ("beta", 2**20)


def test_the_last_epoch_is_read_from_metrics(module_of):
    line = {"event": "epoch", "edges_per_s": 50.2, "bytes_read": 2**31, "bytes_written": 2**29}
    events = [
        {"event": "start"},
        line | {"seconds": 30.0, "io_wait_s": 0.0},
        {"event": "commit"},
        line | {"seconds": 20.0, "io_wait_s": 5.0},
    ]
    assert module_of("partitions").last_epoch(events) == {
        "epoch_s": 20.0, "edges_per_s": 50, "io_share": 0.25, "gib_read": 2.0, "gib_written": 0.5
    }  # fmt: skip


def measured(module_of, partitions, order, budget, **values):
    columns = dict.fromkeys(module_of("partitions").COLUMNS, 1.5)
    return {"partitions": partitions, "order": order, "budget_mib": budget, **columns, **values}


def test_runs_of_one_cut_and_order_become_a_median(module_of, capsys):
    partitions = module_of("partitions")
    lines = [measured(module_of, 8, "beta", 40, io_share=share) for share in (0.1, 0.9, 0.2)]
    lines.append(measured(module_of, 8, "comet", 40, io_share=0.5))
    beta, comet = partitions.medians(lines)
    assert (beta["io_share"], comet["io_share"]) == (0.2, 0.5)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["order"] == "beta"
    assert partitions.table_of([beta]).splitlines()[1].split()[:3] == ["8", "beta", "40"]
    assert "20%" in partitions.table_of([beta])


def test_pictures_are_the_same_when_drawn_again(module_of, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which the demo extra installs")
    partitions, negatives = module_of("partitions"), module_of("negatives")
    lines = [measured(module_of, 1, partitions.ALL_FIT, 80)]
    lines += [measured(module_of, 8, order, 40) for order in ("beta", "comet")]
    for name in ("a", "b"):
        partitions.draw(lines, tmp_path / name / "partitions.svg")
        negatives.draw({"batched": {10: 5.0, 100: 2.0}}, tmp_path / name / "negatives.svg")
    for picture in ("partitions.svg", "negatives.svg"):
        text = (tmp_path / "a" / picture).read_text()
        assert text == (tmp_path / "b" / picture).read_text()
        assert "</svg>" in text
    assert "comet" in (tmp_path / "a" / "partitions.svg").read_text()
