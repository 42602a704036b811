"""What is checked before anything is served: seams, options, settings, the command line."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.engine import seams
from worker.engine.errors import SeamError, SettingsError, UnsupportedError
from worker.engine.launch import EngineConfig, EngineProcess, arguments, environment, free_port
from worker.engine.settings import EngineSettings
from worker.engine.support import check_arguments

ROOT = Path(__file__).parents[2]

SUPPORTED = {
    "tp_size": 1, "pp_size": 1, "dp_size": 1, "ep_size": 1, "moe_a2a_backend": "none", "speculative_algorithm": None,
    "enable_lora": None, "lora_paths": None, "quantization": None, "disaggregation_mode": "null", "enable_eplb": False,
    "ep_num_redundant_experts": 0, "elastic_ep_backend": None, "enable_two_batch_overlap": False,
    "enable_single_batch_overlap": False, "enable_pdmux": False, "dllm_algorithm": None,
    "disable_shared_experts_fusion": True, "sleep_on_idle": True, "tokenizer_worker_num": 1, "device": "cpu",
}  # fmt: skip


def settings(folder, **changes):
    values = {
        "rank": 0, "incarnation": 1, "max_ranks": 2, "slots": 8, "control_path": str(folder / "control"),
        "agent_socket": str(folder / "agent"), "link_socket": str(folder / "link"), "serve_url": "http://127.0.0.1:1",
        "model_path": str(ROOT / "tools/models/sprout"), "manifest_dir": str(folder / "manifests"),
    }  # fmt: skip
    return EngineSettings(**(values | changes))


def config(folder, *extra, **changes):
    port = free_port()
    chosen = settings(folder, serve_url=f"http://127.0.0.1:{port}", **changes)
    return EngineConfig(settings=chosen, host="127.0.0.1", port=port, folder=folder, extra=extra)


def test_what_the_launcher_asks_of_sglang_is_supported():
    check_arguments(SimpleNamespace(**SUPPORTED), device="cpu")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tp_size", 2), ("pp_size", 2), ("dp_size", 4), ("ep_size", 2), ("moe_a2a_backend", "deepep"),
        ("speculative_algorithm", "EAGLE"), ("enable_lora", True), ("lora_paths", ["a"]), ("quantization", "fp8"),
        ("disaggregation_mode", "prefill"), ("enable_eplb", True), ("ep_num_redundant_experts", 4),
        ("elastic_ep_backend", "nixl"), ("enable_two_batch_overlap", True), ("enable_single_batch_overlap", True),
        ("enable_pdmux", True), ("dllm_algorithm", "x"), ("disable_shared_experts_fusion", False),
        ("sleep_on_idle", False), ("tokenizer_worker_num", 2), ("device", "cuda"),
    ],
)  # fmt: skip
def test_an_unsupported_option_is_named_with_its_value_and_a_remedy(option, value):
    with pytest.raises(UnsupportedError) as caught:
        check_arguments(SimpleNamespace(**(SUPPORTED | {option: value})), device="cpu")
    message = str(caught.value)
    assert message.startswith(f"--{option.replace('_', '-')} = {value!r} is not supported")
    assert "Remedy: " in message
    assert "\n" not in message


def test_every_option_that_is_checked_is_tested():
    from worker.engine.support import _BY_DEVICE, _REQUIRED

    assert {name for name, _, _ in (*_REQUIRED, *_BY_DEVICE["cpu"])} == set(SUPPORTED)


CUDA = SUPPORTED | {"device": "cuda", "moe_runner_backend": "triton", "cuda_graph_backend_prefill": "disabled"}


@pytest.mark.parametrize("changes", [{}, {"quantization": "fp8", "moe_runner_backend": "deep_gemm"}])
def test_a_cuda_rank_takes_bf16_and_fp8(changes):
    check_arguments(SimpleNamespace(**(CUDA | changes)), device="cuda")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("device", "cpu"), ("quantization", "awq"), ("moe_runner_backend", "auto"),
        ("cuda_graph_backend_prefill", "breakable"),
    ],
)  # fmt: skip
def test_an_option_that_a_cuda_rank_does_not_take_is_named(option, value):
    with pytest.raises(UnsupportedError, match=option.replace("_", "-")):
        check_arguments(SimpleNamespace(**(CUDA | {option: value})), device="cuda")


@pytest.mark.parametrize(("quantised", "runner"), [(None, "triton"), ({"quant_method": "fp8"}, "deep_gemm")])
def test_a_cuda_rank_starts_with_the_runner_of_its_checkpoint(tmp_path, quantised, runner):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantised}))
    chosen = config(tmp_path, model_path=str(tmp_path), device="cuda", max_tokens=100)
    chosen = replace(chosen, device="cuda", dtype="bfloat16")
    pairs = set(itertools.pairwise(arguments(chosen)))
    assert {("--device", "cuda"), ("--moe-runner-backend", runner), ("--cuda-graph-max-bs-decode", "100")} <= pairs
    assert ("--cuda-graph-backend-prefill", "disabled") in pairs
    variables = environment(chosen)
    assert variables["SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED"] == "0"
    assert "EEP_CPU_SHIMS" not in variables


def test_a_cuda_rank_says_when_the_checkpoint_has_no_config(tmp_path):
    chosen = config(tmp_path, model_path=str(tmp_path), device="cuda")
    with pytest.raises(SettingsError, match=r"config\.json"):
        arguments(replace(chosen, device="cuda"))


@pytest.mark.parametrize(
    ("seam", "difference"),
    [
        (seams.Seam("json.dumps", ("obj", "indentation")), "takes"),
        (seams.Seam("json.gone", ("obj",)), "not found"),
        (seams.Seam("nowhere.at.all", ("obj",)), "not found"),
    ],
)
def test_a_seam_that_differs_is_named(seam, difference):
    with pytest.raises(SeamError, match=f"SGLang seam {seam.target}: {difference}") as caught:
        seam.check()
    assert "install sglang 0.5.23" in str(caught.value)


def test_a_seam_may_have_more_parameters_than_we_pass():
    seams.Seam("json.JSONEncoder.encode", ("self",)).check()


def test_settings_survive_the_file(tmp_path):
    wanted = settings(tmp_path, max_tokens=17)
    wanted.write(tmp_path / "settings.json")
    assert EngineSettings.load(tmp_path / "settings.json") == wanted


@pytest.mark.parametrize(
    ("text", "named"),
    [("{}", "rank"), ('{"rank": 0, "colour": 1}', "colour"), ("[", "EngineSettings for keys"), (None, "No such file")],
)
def test_bad_settings_name_the_key(tmp_path, text, named):
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=named):
        EngineSettings.load(path)


@pytest.mark.parametrize(
    ("key", "value"), [("rank", 2), ("rank", -1), ("slots", 0), ("silence_s", 0.0), ("max_tokens", -3)]
)
def test_settings_out_of_range_name_the_key(tmp_path, key, value):
    with pytest.raises(ValueError, match=key):
        settings(tmp_path, **{key: value})


def test_the_command_line_carries_the_configuration(tmp_path):
    chosen = config(tmp_path, "--log-level", "warning")
    line = arguments(chosen)
    pairs = set(itertools.pairwise(line))
    assert {("--tp", "1"), ("--port", str(chosen.port)), ("--dtype", "float32"), ("--log-level", "warning")} <= pairs
    assert "--sleep-on-idle" in line
    variables = environment(chosen)
    assert variables["EEP_ENGINE_SETTINGS"] == str(tmp_path / "engine-0.json")
    assert variables["EEP_CPU_SHIMS"] == "1"


def test_the_start_up_line_costs_nothing_and_does_nothing_unless_asked():
    look = "import sys; print(sorted(m for m in sys.modules if m.startswith(('worker', 'torch', 'sglang'))))"
    plain = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    asked = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"EEP_CPU_SHIMS": "1"},
    )  # fmt: skip
    assert plain.stdout == "[]\n"
    assert asked.stdout == "['worker', 'worker.cpu', 'worker.cpu.boot']\n"


@pytest.mark.engine
def test_a_refused_option_ends_the_server_with_one_clear_line(tmp_path):
    from native import _native

    chosen = config(tmp_path, "--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "all")
    _native.ControlBlock.create(chosen.settings.control_path, rank=0, incarnation=1)
    process = EngineProcess(chosen)
    try:
        assert process.wait_ended(within_s=120) == 78
    finally:
        process.kill()
    lines = [line for line in process.log_text().splitlines() if line.startswith("eep: ")]
    assert lines == ["eep: --enable-lora = True is not supported on an elastic rank. Remedy: leave --enable-lora out"]


@pytest.mark.engine
def test_every_seam_is_where_this_build_expects_it():
    check = (
        "import worker.cpu.boot as boot; boot.install(); from worker.engine import seams\n"
        "for seam in (*seams.SCHEDULER, *seams.MAIN): seam.check()"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"SGLANG_USE_CPU_ENGINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
