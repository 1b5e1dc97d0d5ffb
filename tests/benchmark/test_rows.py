"""The rows of a benchmark from made-up times: ratios, predictions, the table and JSON."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from shareatt_export.benchmark.limits import Limits, measure_limits
from shareatt_export.benchmark.measure import Measured
from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.rows import Ratio, as_dict, rows
from shareatt_export.benchmark.settings import ModelPair, settings_of
from shareatt_export.benchmark.uses import uses
from shareatt_export.cli import bench_report
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.costs import read_weights
from shareatt_export.model.facts import read_facts

ON, OFF, KERNELS, SA = "dense, flash on", "dense, flash off", "dense, SA kernels", "SA"


@pytest.fixture
def measured(files):
    """Three rounds of made-up times; most become twice as long from round to round."""
    headers = [read_header(file) for file in files]
    pair = ModelPair(*map(read_facts, headers), *map(read_weights, headers))
    request = BenchRequest(*files, depths=(0, 64), rounds=3)
    seconds = {}
    for depth in request.depths:
        seconds["decode", depth] = {
            ON: [0.10, 0.20, 0.40],
            OFF: [0.12, 0.30, 0.60],
            KERNELS: [0.09, 0.20, 0.30],
            SA: [0.08, 0.16, 0.20],
        }
        seconds["prefill", depth] = {ON: [3.0] * 3, OFF: [2.0] * 3, KERNELS: [2.0] * 3, SA: [4.0, 1.0, 2.0]}
    layers = dict.fromkeys(range(12), 0.004)
    follower = layers | {7: 0.001, 8: 0.001, 9: 0.002}
    slow = dict.fromkeys(range(12), 0.008)
    memory = {
        ON: {"rss": 90, "anonymous": 50},
        OFF: {"rss": 80, "anonymous": 60},
        KERNELS: {"rss": 96, "anonymous": 60},
        SA: {"rss": 72, "anonymous": 45},
    }
    return Measured(
        request,
        pair,
        settings_of(request),
        seconds,
        attention={
            ("decode", 64): {ON: [layers, layers, slow], OFF: [layers] * 3, KERNELS: [slow] * 3, SA: [follower] * 3},
            ("prefill", 64): {name: [layers, slow, layers] for name in (ON, OFF, KERNELS, SA)},
        },
        buffers={name: {"kv": kv, "compute": 10} for name, kv in ((ON, 800), (OFF, 800), (KERNELS, 800), (SA, 700))},
        limits=Limits(read=1e9, flops=2e9),
        memory=memory,
    )


def test_ratios_are_of_the_same_round_and_to_the_better_dense_setting(measured):
    by_name = {(row.what, row.depth): row for row in rows(measured)}
    decode = by_name["decode", 64]
    assert (decode.baseline, decode.values[ON], decode.values[SA]) == (ON, 5.0, 1 / 0.16)
    assert decode.ratios == {KERNELS: Ratio(0.10 / 0.09, 1.0, 0.4 / 0.3), SA: Ratio(0.10 / 0.08, 0.10 / 0.08, 2.0)}
    assert decode.sharing == {SA: Ratio(0.20 / 0.16, 0.09 / 0.08, 0.3 / 0.2)}
    prefill = by_name["prefill", 64]
    assert prefill.baseline == OFF and prefill.ratios[SA] == Ratio(1.0, 0.5, 2.0)
    attention = by_name["decode attention", 64]
    assert attention.baseline == ON and attention.ratios[SA] == Ratio(0.25, 0.125, 0.25)
    assert attention.ratios[KERNELS] == Ratio(2.0, 1.0, 2.0) and attention.sharing == {SA: Ratio(0.125, 0.125, 0.125)}
    assert by_name["KV cache", None].ratios[SA].median == 700 / 800
    assert by_name["peak memory", None].ratios[SA].median == 72 / 80
    assert by_name["peak memory", None].sharing[SA].median == 72 / 96
    assert by_name["peak anonymous memory", None].ratios[SA].median == 45 / 50


def test_predictions(measured):
    by_name = {(row.what, row.depth): row.predicted for row in rows(measured)}
    # three of twelve layers have no K, which has the size of V: an eighth of the cache
    assert by_name["KV cache", None] == 1 - 3 / 24
    weights = [info.n_bytes for info in read_header(measured.request.dense).tensors.values()]
    saved = 3 * 128 * (128 + 64) // 32 * 34
    assert by_name["decode", 0] == pytest.approx(sum(weights) / (sum(weights) - saved))
    k, p = 64 * (3 * 64 * 2), 64 * (3 * 4 * 2)
    kv = 64 * (24 * 64 * 2)
    assert by_name["decode", 64] == pytest.approx((sum(weights) + kv) / (sum(weights) - saved + kv - k + p))
    assert by_name["decode attention", 64] == (64 * 2 + 4 * 2) / (2 * 64 * 2)
    assert by_name["compute buffers", None] is None
    assert by_name["prefill", 64] > by_name["prefill", 0] > 1


def test_the_table_marks_the_better_dense_setting(measured):
    console = Console(file=io.StringIO(), width=200)
    bench_report.show(measured, console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    decode = "decode, tokens/s 64 5.00 * 3.33 5.00 6.25 1.11 (1.00-1.33) 1.25 (1.25-2.00) 1.25 (1.12-1.50)"
    assert decode in [line.rsplit(" ", 1)[0] for line in lines]
    assert "decode attention, ms 64 4.00 * 4.00 8.00 1.00 2.00 (1.00-2.00) 0.25 (0.12-0.25) 0.125 0.531" in lines


def test_what_is_used_of_the_machine(measured):
    used = {(use.what, use.depth): use for use in uses(measured)}
    weights = sum(info.n_bytes for info in read_header(measured.request.dense).tensors.values())
    decode = used["decode", 64]
    assert decode.limit == 1e9 and decode.values[ON] == (weights + 64 * (24 * 64 * 2)) / 0.2
    assert decode.values[SA] < (weights + 64 * (24 * 64 * 2)) / 0.16  # it reads less
    attention = used["prefill attention", 64]
    n_tokens, seen = 512, 512 * 64 + 512 * 513 // 2
    assert n_tokens == measured.request.prompt and attention.limit == 2e9
    assert attention.values == dict.fromkeys((ON, OFF, KERNELS, SA), 2 * seen * 4 * (32 + 32) / 0.004)


def test_nothing_is_said_of_what_has_other_limits(measured):
    facts = measured.pair.facts
    everywhere = replace(measured.pair.sa_facts, attention=facts.attention)
    for layer in range(facts.n_layer):
        everywhere = replace(everywhere, attention=everywhere.attention.with_drop(facts.attention.groups(layer)[0]))
    touched = replace(measured, pair=replace(measured.pair, sa_facts=everywhere))
    assert {use.what for use in uses(touched)} == {"decode"}  # no layer is left whose attention is that of dense
    experts = replace(measured.pair, weights=replace(measured.pair.weights, has_experts=True))
    assert uses(replace(measured, pair=experts)) == []
    assert uses(replace(measured, request=replace(measured.request, gpu_layers=-1))) == []


def test_the_limits_of_this_machine():
    """Any computer reads more than a gigabyte per second, and none of today reads a terabyte with two threads."""
    for n_threads in (1, 2):
        limits = measure_limits(n_threads)
        assert 1e9 < limits.read < 1e12 and 1e9 < limits.flops < 1e13


def test_json_of_made_up_seconds_is_json(measured):
    assert json.loads(json.dumps(as_dict(measured)))["cache"] == {"k": "f16", "v": "f16"}
