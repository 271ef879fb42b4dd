"""`atk plan`, and the benchmark that compares its plans with real steps."""

import json

import pytest

import check_plan
from atk.cli.main import main


def test_the_command_takes_the_configuration_of_a_run(tiny_run, capsys):
    config = ["plan", "--config", str(tiny_run / "config.yaml"), "--device", "h100", "--precision", "auto"]
    main([*config, "--batch", "64", "--devices", "2", "--device-memory", "8", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["facts"]["batch_size"] == 64 and result["facts"]["dim"] == 16
    assert result["facts"]["precision"] == "bf16" and set(result["largest_batch"]) == {"micro_batch 32", "at once"}
    main([*config, "--batch", "64", "--devices", "2", "--device-memory", "8"])
    lines = capsys.readouterr().out.splitlines()
    mib = {line[:38].strip(): line[38:].split()[0] for line in lines if line[:1].isalpha() and len(line) > 49}
    assert float(mib["waveforms"]) == round(32 * 8000 * 4 / 2**20, 1)
    assert float(mib["total (memory: at the peak)"]) == round(result["peak_bytes"] / 2**20, 1)


@pytest.mark.slow
def test_rates_given_by_the_user(capsys):
    tiny = ["--model.audio.width", "16", "--model.audio.layers", "1", "--model.text.layers", "1", "--clip-seconds", "1"]
    rates = ["--matmul-tflops", "2", "--bandwidth-gb", "3", "--interconnect-gb", "4", "--json"]
    main(["plan", "--method", "semisupervised", "--device", "new", *tiny, *rates])
    rates_used = json.loads(capsys.readouterr().out)["facts"]["rates"]
    assert (rates_used["matmul"], rates_used["bandwidth"], rates_used["interconnect"]) == (2e12, 3e9, 4e9)
    main(["plan", "--device", "cpu", "--precision", "fp32", *tiny, *rates])
    rates_used = json.loads(capsys.readouterr().out)["facts"]["rates"]
    assert rates_used["matmul"] == rates_used["single"] == 2e12 and rates_used["random"] < 1e12


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--method", "caption"], "--method must be one of 'aligned', 'difference', 'semisupervised', 'unified', got"),
        (["--device", "tpu"], "got 'tpu'"),
        (["--device", "h100", "--devices", "0"], "devices must be at least 1, got 0"),
        (["--device", "h100", "--devices", "64"], "batch_size must be at least the number of devices, 64; got 32"),
        (["--device", "h100", "--device-memory", "-1"], "device_memory must be above 0 GiB, got -1.0"),
        (["--device", "h100", "--caption-tokens", "0"], "caption_tokens must be at least 1, got 0"),
        (["--device", "h100", "--bandwidth-gb", "0"], "bandwidth_gb must be above 0, got 0.0"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(flags, text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *flags])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and text in message and message.count("\n") == 1


@pytest.mark.slow
def test_the_check_runs_real_steps(tiny_data):
    case = {"batch_size": 4, "micro_batch": 2}
    measured = check_plan.measure(case, str(tiny_data), 1)
    line = check_plan.row(case, check_plan.predict(case, str(tiny_data), measured["caption_tokens"]), measured)
    assert len(measured["seconds"]) == 1 and measured["bytes"] > 0
    assert line["time_factor"] >= 1 and line["memory_factor"] >= 1
    record = {
        "rows": [line],
        "worst_memory": 1.0,
        "worst_time": 1.0,
        "interpretation": "",
        "steps": 1,
        "environment": {},
    }
    assert "| batch_size 4, micro_batch 2 |" in check_plan.render_page(record)


def test_the_factor_of_the_check_is_symmetric():
    assert check_plan.factor(2.0, 1.0) == check_plan.factor(1.0, 2.0) == 2.0
