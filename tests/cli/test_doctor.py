"""`atk doctor`: versions, GPUs, missing packages, and the check of the kernels."""

import re
import types

import pytest
import torch

import atk
from atk.cli import doctor
from atk.cli.main import main
from atk.ops import self_check


def printed(capsys, *options):
    main(["doctor", *options])
    return capsys.readouterr().out


def test_doctor_names_versions_and_backends(capsys):
    report = printed(capsys)
    assert f"atk {atk.__version__}" in report and "torch " in report and "cpu float32: auto uses" in report


def test_doctor_names_gpus_and_missing_packages(monkeypatch):
    def version(name):
        if name == "soundfile":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((index + 1) << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(atk, "backends", lambda op: {})
    report = doctor.report()
    assert "  cuda:0: GPU 0, 1024 of 8192 MiB free\n  cuda:1: GPU 1, 2048 of 8192 MiB free\n" in report
    assert re.search(r"soundfile: missing \(reading audio\); pip install .*audio-text-kernels\[train\]", report)


def test_doctor_checks_the_kernels_of_the_cpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    lines = printed(capsys, "--check").splitlines()
    assert lines[0].startswith(f"atk {atk.__version__}, torch {torch.__version__}, ") and lines[2].startswith("cpu: ")
    rows = [line.split(maxsplit=5) for line in lines[4:]]
    assert [row[2] for row in rows[::3]] == ["cpp", "chunked", "sdpa", "chunked", "chunked"] and len(rows) == 15
    assert all(row[5] == "ok" and 0 < float(row[3]) < float(row[4]) for row in rows if row[2] != "cpp")


def test_doctor_exits_with_1_if_a_kernel_is_wrong(capsys, monkeypatch):
    def check(op, backend, device, dtype):
        assert device.type == "cuda"
        if dtype == torch.float16:
            raise ValueError("no\ncode")
        if dtype == torch.bfloat16 and backend == "sdpa":
            raise self_check.UncheckedError("no memory")
        wrong = op == "info_nce" and device.index == 1
        return [self_check.Deviation("rows 1", 0.5 if wrong else 1e-6, 1e-4)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = types.SimpleNamespace(name="NVIDIA X100", major=13, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(doctor, "unavailable", lambda name, *_: "needs care" if name == "chunked" else None)
    monkeypatch.setattr(self_check, "check", check)
    with pytest.raises(SystemExit) as stop:
        printed(capsys, "--check")
    out = capsys.readouterr().out
    assert (
        stop.value.code == 1 and "cuda:0: NVIDIA X100" in out and "cuda:1: NVIDIA X100, compute capability 13.0" in out
    )
    for row in (
        r"max_mean_similarity +float32 +triton +1.0e-06 +1.0e-04 +ok",
        r"sigmoid_loss +float32 +chunked +- +- +needs care",
        r"info_nce +float16 +triton +- +- +WRONG: ValueError: no code",
        r"info_nce +bfloat16 +triton +5.0e-01 +1.0e-04 +WRONG: rows 1 is off by .* \(1 of 1 results are wrong\)",
        r"cross_attention_difference +bfloat16 +sdpa +- +- +cannot be checked: no memory",
    ):
        assert len(re.findall(f"^  {row}$", out, re.MULTILINE)) >= 1


def test_doctor_with_a_flag_given_twice_takes_the_parser(monkeypatch):
    calls = []
    monkeypatch.setattr(doctor, "run", lambda **options: calls.append(options))
    main(["doctor", "--check", "--check"])
    assert calls == [{"check": True}]
