"""Loading BLIP3o-NEXT's layout costs its language model's weights, and no more."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "load_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_at_most_that_of_the_language_model_and_a_little():
    found = importlib.util.spec_from_file_location("load_memory", BENCHMARK)
    benchmark = importlib.util.module_from_spec(found)
    sys.modules["load_memory"] = benchmark
    found.loader.exec_module(benchmark)
    result = benchmark.measure(768, 6, 20_000_000, ("float32",))
    assert result["checkpoint_bytes"] > 1.5 * result["language_model_bytes"]
    assert 0.98 < result["float32"]["peak_ratio"] < 1.15
    assert result["float32"]["anonymous_ratio"] < 1.15
