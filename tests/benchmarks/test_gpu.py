"""The GPU benchmark, tried on the processor: what it measures is there and adds up."""

import json

import pytest
import torch

SMALL = [
    "--device", "cpu", "--entities", "500", "--edges", "2000", "--communities", "10",
    "--cases", "8:10+10", "--batch-sizes", "200", "--side", "64", "--mebibytes", "1",
    "--ways", "eager",
]  # fmt: skip


@pytest.fixture(scope="module")
def gpu(module_of):
    return module_of("gpu")


def test_rates_and_shares_are_measured(gpu, capsys, monkeypatch):
    monkeypatch.delenv("BIGGRAPH_DATA", raising=False)
    gpu.main([*SMALL, "--skip", "tests"])
    said = capsys.readouterr()
    lines = {}
    for line in map(json.loads, said.out.splitlines()):
        lines.setdefault(line["measurement"], []).append(line)
    (top,) = lines["ceilings"]
    assert [rate["precision"] for rate in lines["rate"]] == ["float32", "tf32", "bfloat16"]
    for rate in lines["rate"]:
        flops = rate["edges_per_s"] * 12 * 20 * 8
        wanted = flops / top[f"{rate['precision']}_tflop_s"] / 1e12
        assert rate["share_of_product"] == pytest.approx(wanted, rel=0.02, abs=1e-5)
        assert rate["whole_bucket_edges_per_s"] > 0
        assert rate["loss"] > 0
    assert "BIGGRAPH_DATA" in lines["quality"][0]["skipped"]
    assert "D=8, 10+10" in said.err


def test_what_fails_is_said_and_the_rest_is_measured(gpu, capsys, monkeypatch):
    def fail_at_bfloat16(job, where, size, precision, way):
        if precision == "bfloat16":
            raise RuntimeError("CUDA error")
        return {"edges_per_s": 1.0, "whole_bucket_edges_per_s": 1.0, "loss": 1.0, "end_s": 0.0}

    monkeypatch.setattr(gpu, "train", fail_at_bfloat16)
    gpu.main([*SMALL, "--skip", "tests", "ceilings", "quality"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["measurement"] for line in lines] == ["machine", "rate", "rate", "failed"]
    assert lines[-1]["error"] == "CUDA error"


def test_the_fewest_bytes_are_those_of_distinct_rows(gpu):
    drawn = gpu.synthetic.triples(50, entities=40, relations=2, communities=2, noise=0.1)
    job = gpu.Job.of(gpu.Case(4, 5, 400), drawn, 40)
    # More candidates than entities: every entity is in every batch of 50.
    assert gpu.bytes_of_batch(job, 50) <= 40 * 4 * (3 * 4 + 2)
    assert gpu.bytes_of_batch(job, 50) > 20 * 4 * (3 * 4 + 2)


def test_time_to_quality_counts_epochs_until_the_target(gpu):
    events = [{"event": "start", "time_s": 100.0}]
    for epoch, mrr in enumerate((0.2, 0.33, 0.345, 0.36), 1):
        events.append({"event": "epoch", "time_s": 0.0, "seconds": 2.0})
        events.append({"event": "evaluation", "time_s": 100.0 + 3 * epoch, "epoch": epoch,
                       "mrr": mrr})  # fmt: skip
    assert gpu.time_to(0.34, events) == {
        "target": 0.34, "reached": True, "mrr": 0.345, "epochs": 3, "train_s": 6.0, "wall_s": 9.0,
    }  # fmt: skip
    missed = gpu.time_to(0.5, events)
    assert (missed["reached"], missed["mrr"], missed["train_s"]) == (False, 0.36, 8.0)


def test_without_a_gpu_it_ends_with_a_plain_message(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit, match=r"nothing was measured: train.device = .*cuda"):
        gpu.main([])
