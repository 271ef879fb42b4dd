"""`atk plan`: its arguments, and what it prints."""

import json
from dataclasses import fields, replace

import torch
from jsonargparse import ArgumentParser, Namespace

from atk.device import pick_device
from atk.plan.rates import Rates
from atk.plan.report import format_plan, plan
from atk.plan.step import Resources
from atk.train.aligned import AlignedConfig
from atk.train.contrastive import ContrastiveConfig
from atk.train.semisupervised import SemiSupervisedConfig

_METHODS = {"aligned": AlignedConfig, "semisupervised": SemiSupervisedConfig}
_NOT_READ = ("data", "out", "unlabeled")  # fields of a configuration that name folders
_UNITS = {"matmul_tflops": 1e12, "bandwidth_gb": 1e9, "interconnect_gb": 1e9}


def add_arguments(parser: ArgumentParser, method: str) -> None:
    """The plan's own, and those of `atk train METHOD`."""
    if method not in _METHODS:
        reason = "captions of a batch do not meet there" if method == "difference" else "no such method"
        parser.error(f"--method must be {' or '.join(_METHODS)}, got {method!r} ({reason})")
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below, as a run writes it")
    parser.add_argument("--method", type=str, default="aligned", help=" or ".join(_METHODS))
    parser.add_argument("--batch", type=int | None, default=None, help="batch_size by a shorter name")
    parser.add_argument("--devices", type=int, default=1, help="ranks, of one device each")
    parser.add_argument("--device_memory", type=float | None, default=None, help="GiB of each: what fits is told then")
    parser.add_argument("--caption_tokens", type=int, default=16, help="tokens of a caption, without special ones")
    parser.add_argument("--matmul_tflops", type=float | None, default=None, help="rate of matrix products to count on")
    parser.add_argument("--bandwidth_gb", type=float | None, default=None, help="GB/s of memory to count on")
    parser.add_argument("--interconnect_gb", type=float | None, default=None, help="GB/s that a rank receives")
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name in _NOT_READ:
        parser.add_argument(f"--{name}", default=None, help="not read")
    parser.add_class_arguments(_METHODS[method], skip=set(_NOT_READ) & {f.name for f in fields(_METHODS[method])})


def run(arguments: Namespace) -> None:
    """Print the plan.

    Raises:
        ValueError: the configuration or a number is not one that can be planned.
    """
    config = _config(arguments)
    cpu = config.device == "cpu"
    if config.precision == "auto":
        config = replace(config, precision="fp32" if cpu else "bf16")
    resources = Resources(_rates(arguments, config), cpu, arguments.devices, arguments.device_memory)
    result = plan(config, resources, arguments.caption_tokens)
    print(json.dumps(result.to_dict(), indent=2) if arguments.json else format_plan(result))


def _config(arguments: Namespace) -> ContrastiveConfig:
    """The configuration of a run without folders, on a device by its own name."""
    make = _METHODS[arguments.method]
    values = {field.name: arguments[field.name] for field in fields(make) if field.name not in _NOT_READ}
    if arguments.batch is not None:
        values["batch_size"] = arguments.batch
    if make is SemiSupervisedConfig:
        values["unlabeled"] = ["-"]
    return make(data="-", out="-", **values | {"device": _device_name(values["device"])})


def _device_name(name: str) -> str:
    """What `auto` and `cuda` stand for here; a GPU's own name as it was given."""
    if name != "auto" and not name.startswith("cuda"):
        return name
    device = pick_device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _rates(arguments: Namespace, config: ContrastiveConfig) -> Rates:
    """The device's, or those that the user counts on."""
    given = {name: arguments[name] for name in _UNITS if arguments[name] is not None}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    bf16 = config.precision == "bf16"
    if len(given) == len(_UNITS) and config.device != "cpu":
        return Rates.of_gpu(given["matmul_tflops"], given["matmul_tflops"], *list(given.values())[1:])
    values = {name.rsplit("_", 1)[0]: value * _UNITS[name] for name, value in given.items()}
    if "matmul" in values and not bf16:
        values["single"] = values["matmul"]
    return replace(Rates.of(config.device, bf16), **values)
