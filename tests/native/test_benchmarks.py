"""The two benchmarks of the data plane run, say what they must, and find nothing wrong."""

import json
import subprocess
import sys


def bench(tmp_path, *arguments):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tools.benchmarks", *arguments, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(report.read_text())


def test_dispatch_is_compared_with_gloo_and_with_fixed_membership(tmp_path):
    result = bench(tmp_path, "dispatch", "--ranks", "2", "--tokens", "1", "8", "--hidden", "2048", "--blocks", "2")
    assert result["wrong_sums"] == 0
    assert [(row["ranks"], row["tokens"]) for row in result["rows"]] == [(2, 1), (2, 8)]
    for row in result["rows"]:
        assert 0 < row["dispatch"]["median_us"] <= row["dispatch"]["p99_us"]
        assert row["gloo"]["median_us"] > 0
        assert row["elastic_over_fixed"] > 0
    assert result["memory_at_64_ranks"]["inbox_mb"] < 240


def test_kills_accuse_nobody_falsely(tmp_path):
    result = bench(tmp_path, "faults", "--trials", "6", "--large-trials", "1")
    assert result["false_accusations"] == 0
    for scenario in ("idle", "load", "idle_large", "load_large"):
        assert result[scenario]["rounds_before_kills"] > 0
        assert result[scenario]["evidence"]["DEAD"] >= result[scenario]["trials"]
        assert len(result[scenario]["samples"]["left_ms"]) == result[scenario]["trials"]
