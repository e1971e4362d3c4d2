"""What benchmarks say of their children, and how they read what they are asked for."""

import argparse
import json
import sys

import pytest


@pytest.mark.multiprocess
def test_memory_of_a_child_and_of_its_child_counts(module_of):
    inner = "import time; held = b'x' * (40 << 20); time.sleep(1.2)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    said, used = module_of("measuring").run([sys.executable, "-c", f"{outer}; print('done')"])
    assert said == "done\n"
    assert used["peak_rss_mib"] >= 50  # 40 in the inner one, and two interpreters
    assert used["wall_s"] >= 1.2
    assert set(used) >= {"cpu_s", "peak_pss_mib", "others_cpus", "load"}


@pytest.mark.multiprocess
def test_a_child_has_one_thread_and_what_it_is_given(module_of):
    script = "import json, os; print(json.dumps([os.environ[k] for k in ('OMP_NUM_THREADS', 'A')]))"
    said, _ = module_of("measuring").run([sys.executable, "-c", script], extra_env={"A": "b"})
    assert json.loads(said) == ["1", "b"]


@pytest.mark.multiprocess
def test_a_failure_ends_the_benchmark_with_what_was_said(module_of):
    with pytest.raises(SystemExit, match="out of paper"):
        module_of("measuring").run([sys.executable, "-c", "raise SystemExit('out of paper')"])


def test_cases_are_read_and_counted(module_of):
    train_speed = module_of("train_speed")
    case = train_speed.Case.parse("200:100+50")
    assert case == train_speed.Case(200, 100, 50)
    assert str(case) == "D=200, 100+50"
    # Three products of 2 N D each, for both sides.
    assert case.flops() == 3 * (2 * 150 * 200) * 2
    with pytest.raises(argparse.ArgumentTypeError, match="100:50"):
        train_speed.Case.parse("200")


def test_ratios_are_of_runs_in_the_same_repeat(module_of, capsys):
    rest = dict.fromkeys(("share_of_sgemm", "peak_rss_mib", "peak_pss_mib", "others_cpus"), 0.5)
    rates = {"biggraph": (100, 400, 900), "pbg": (100, 200, 300)}
    lines = [
        {
            "case": "c", "workers": 1, "side": side, "edges_per_s": rates[side][repeat],
            "epochs": [5, rates[side][repeat]], **rest,
        }
        for repeat in range(3)
        for side in rates
    ]  # fmt: skip
    tables = module_of("train_speed").summarise(lines)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (ratio,) = (line for line in printed if line["measurement"] == "ratio")
    assert (ratio["least"], ratio["ratio"], ratio["most"]) == (1, 2, 3)
    assert ratio["ratio_of_best"] == 3
    assert "2.00" in tables[1]
