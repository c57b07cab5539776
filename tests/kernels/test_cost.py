"""The cost model: where it must choose dense, where sparse, and that measured rates are kept and used."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightint_compile.kernels import cost

RATES = cost.KNOWN["H200", "hopper"]


def speedup(tokens: int, density: float, rows: int = 16) -> float:
    shape = (rows, 128, tokens, tokens)
    return cost.dense_time(RATES, *shape) / cost.sparse_time(RATES, *shape, density)


@pytest.mark.parametrize("tokens", [512, 1024])
def test_short_sequences_stay_dense(tokens):
    assert speedup(tokens, 0.05) < 1


def test_nothing_skipped_gains_no_more_than_the_faster_kernel():
    rates = RATES.sparse_rate / RATES.dense_rate
    assert all(speedup(tokens, 1.0) < rates for tokens in (512, 4096, 32768, 65536))


def test_long_sparse_sequences_gain_most_of_what_is_skipped():
    assert speedup(65536, 0.1) > 7
    assert speedup(65536, 0.3) > 2.7


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 2**17), rows=st.integers(1, 64), low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_keeping_more_never_costs_less(tokens, rows, low, high):
    low, high = sorted((low, high))
    times = [cost.sparse_time(RATES, rows, 128, tokens, tokens, density) for density in (low, high)]
    assert 0 < times[0] <= times[1]


def test_measured_rates_are_kept_on_disk_and_win_over_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_path", lambda device, implementation: tmp_path / f"{implementation}.json")
    cost._kept_rates.cache_clear()
    cpu = torch.device("cpu")
    decide = (cpu, torch.float32, 1, 4, 64, 4096, 4096)
    cheap = {"dense_fixed": 1, "dense_rate": 1, "sparse_fixed": 1, "sparse_rate": 1, "pool_rate": 1e3, "units": 1}
    (tmp_path / "None.json").write_text(json.dumps({"rates": cheap}))
    assert cost.prefers_sparse(*decide, 0.5) and cost.origin_of(cpu) is cost.Origin.MEASURED
    (tmp_path / "None.json").write_text(json.dumps({"rates": cheap | {"sparse_rate": 0.4}}))
    cost._kept_rates.cache_clear()
    assert not cost.prefers_sparse(*decide, 0.5)
    (tmp_path / "None.json").write_text("{broken")
    cost._kept_rates.cache_clear()
    assert cost.rates_of(cpu) in (cost._CPU, cost._MANY_CORES) and cost.origin_of(cpu) is cost.Origin.GUESSED
    cost._kept_rates.cache_clear()


def test_measuring_this_machine_gives_positive_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_path", lambda device, implementation: tmp_path / f"{implementation}.json")
    monkeypatch.setattr(cost._Probe, "_time", lambda self, call: (call(), 5.0)[1])
    rates = cost.measure("cpu")
    assert min(rates.dense_fixed, rates.dense_rate, rates.sparse_fixed, rates.sparse_rate, rates.pool_rate) > 0
    assert cost.rates_of(torch.device("cpu"), "gather") == rates
    cost._kept_rates.cache_clear()


def test_where_the_host_is_out_of_the_way_shorter_sites_are_worth_skipping(monkeypatch):
    monkeypatch.setattr(cost, "rates_of", lambda device, implementation: replace(RATES, sparse_fixed=480.0))
    site = ("cpu", torch.bfloat16, 1, 16, 128, 4096, 4096, 0.2)
    assert not cost.prefers_sparse(*site)
    assert cost.prefers_sparse(*site, host_hidden=True)
    assert not cost.prefers_sparse("cpu", torch.bfloat16, 1, 16, 128, 512, 512, 0.05, host_hidden=True)


def test_noise_does_not_make_sparse_attention_faster_than_hardware(monkeypatch, tmp_path):
    """A busy machine can time the longer call as the shorter one; the rates stay within reason."""
    times = iter([5.0, 100.0, 1.0, 100.0, 5.0])  # dense short and long, sparse thin and full, tiny
    monkeypatch.setattr(cost, "_path", lambda device, implementation: tmp_path / f"{implementation}.json")
    monkeypatch.setattr(cost._Probe, "_time", lambda self, call: next(times))
    rates = cost.measure("cpu")
    assert rates.sparse_rate <= 1.1 * rates.dense_rate
    cost._kept_rates.cache_clear()


def test_many_cores_are_not_promised_what_one_gains(monkeypatch):
    monkeypatch.setattr(cost, "_path", lambda device, implementation: Path("nowhere"))
    decided = []
    for threads in (1, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        cost._kept_rates.cache_clear()
        decided.append([cost.prefers_sparse("cpu", torch.float32, 1, 4, 64, 4096, 4096, d) for d in (0.15, 0.5)])
    assert decided == [[True, True], [True, False]]
    cost._kept_rates.cache_clear()


def test_the_fingerprint_changes_with_every_rate_and_every_constant(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_path", lambda device, implementation: tmp_path / f"{device.type}{implementation}.json")
    seen = set()

    def fingerprint():
        cost._kept_rates.cache_clear()
        assert cost.fingerprint() == cost.fingerprint()
        return cost.fingerprint()

    seen.add(fingerprint())
    for rate in asdict(cost._CPU):
        changed = asdict(cost._CPU) | {rate: 7}
        (tmp_path / "cpugather.json").write_text(json.dumps({"rates": changed}))
        seen.add(fingerprint())
    monkeypatch.setattr(cost, "MARGIN", 0.5)
    seen.add(fingerprint())
    assert len(seen) == 2 + len(asdict(cost._CPU))
    cost._kept_rates.cache_clear()


def test_the_fingerprint_knows_how_many_threads_decide(monkeypatch, tmp_path):
    """No clearing in between: the thread count is part of what rates are kept under."""
    monkeypatch.setattr(cost, "_path", lambda device, implementation: tmp_path / "nowhere")
    cost._kept_rates.cache_clear()
    found = []
    for threads in (1, 16, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(cost.fingerprint())
    assert found[0] == found[2] != found[1]
    cost._kept_rates.cache_clear()
