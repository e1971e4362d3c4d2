"""The simulation of many workers: bandwidth is shared as it says, and time is accounted for."""

import pytest


@pytest.fixture(scope="module")
def scale(module_of):
    return module_of("scale")


def ends(scale, pipe_of, transfers):
    """Return when transfers (start, bytes) end."""
    engine = scale.Engine()
    pipe, found = pipe_of(engine), {}

    def one(start, size):
        yield start
        yield pipe.move(size)
        found[start, size] = engine.now

    for start, size in transfers:
        engine.start(one(start, size))
    engine.run()
    return [found[transfer] for transfer in transfers]


def test_transfers_share_bandwidth_equally(scale):
    def pipe(engine):
        return scale.Pipe(engine, 10.0, 10.0)

    assert ends(scale, pipe, [(0.0, 50.0)]) == [5.0]
    assert ends(scale, pipe, [(0.0, 50.0), (0.0, 20.0)]) == pytest.approx([7.0, 4.0])
    assert ends(scale, pipe, [(0.0, 50.0), (3.0, 30.0)]) == pytest.approx([7.0, 8.0])


def test_a_transfer_is_never_faster_than_its_link(scale):
    def pipe(engine):
        return scale.Pipe(engine, 10.0, 4.0)

    transfers = [(0.0, 40.0), (0.0, 41.0)]
    assert ends(scale, pipe, transfers) == pytest.approx([10.0, 10.25])
    # Four at 2.5, three at 3.3, then two and one at 4 bytes a second.
    transfers = [(0.0, 10.0), (0.0, 11.0), (0.0, 12.0), (0.0, 13.0)]
    assert ends(scale, pipe, transfers) == pytest.approx([4.0, 4.3, 4.55, 4.8])


@pytest.mark.parametrize("storage", ["shared", "nodes"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_compute_is_what_was_asked_and_shares_add_up(scale, storage, prefetch):
    setting = scale.Setting(1e6, 1e9, 8, 3, storage, prefetch, edges_per_s=1e6)
    result = scale.simulate(setting)
    assert result["compute"] * result["epoch_s"] * 3 == pytest.approx(1000, rel=1e-3)
    assert result["compute"] + result["io"] + result["idle"] == pytest.approx(1, abs=1e-3)
    assert min(result["compute"], result["io"], result["idle"]) >= 0


def test_one_worker_without_data_to_move_takes_its_edges(scale):
    result = scale.simulate(scale.Setting(1, 1e10, 1, 1, edges_per_s=1e6))
    assert result["epoch_s"] == pytest.approx(1e4 + 1e10 * scale.EDGE_BYTES / scale.DISK, rel=0.02)


def test_prefetching_hides_reading(scale):
    times = [
        scale.simulate(scale.Setting(1e9, 1e11, 16, 1, prefetch=prefetch))["epoch_s"]
        for prefetch in (False, True)
    ]
    assert times[1] < times[0]


def test_storage_that_all_share_limits_many_workers(scale, monkeypatch):
    setting = scale.Setting(1e9, 1e10, 32, 12)
    times = []
    for bandwidth in (2e9, 10e9, 100e9):
        monkeypatch.setattr(scale, "SHARED", bandwidth)
        times.append(scale.simulate(setting)["epoch_s"])
    assert times[0] > times[1] > times[2]


def test_published_times_keep_their_shape(scale):
    """From two machines on, predicted ratios are near those of the paper."""
    lines = scale.against_published().splitlines()[1:]
    steps = [line.split()[-1] for line in lines if line.split()[1] in ("4", "8")]
    assert len(steps) == 4
    assert all(abs(int(step.rstrip("%"))) <= 20 for step in steps)
