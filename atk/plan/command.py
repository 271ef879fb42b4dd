"""`atk plan`: its arguments, and what it prints."""

import json
from dataclasses import fields, replace
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser, Namespace

from atk.plan.encoders import PlanConfig
from atk.plan.rates import Rates
from atk.plan.report import format_plan, on_device, plan
from atk.plan.step import Resources
from atk.train.aligned import AlignedConfig
from atk.train.difference import DifferenceConfig
from atk.train.semisupervised_config import SemiSupervisedConfig, UnlabeledConfig
from atk.train.unified_config import UnifiedConfig

Method = Literal["aligned", "difference", "semisupervised", "unified"]
_CONFIGS: dict[str, type[PlanConfig]] = {
    "aligned": AlignedConfig,
    "difference": DifferenceConfig,
    "semisupervised": SemiSupervisedConfig,
    "unified": UnifiedConfig,
}
_IGNORED = ("data", "data_weights", "caption_column", "out", "unlabeled")  # fields that say what to read and write
_UNITS = {"matmul_tflops": 1e12, "bandwidth_gb": 1e9, "interconnect_gb": 1e9}


def add_arguments(parser: ArgumentParser, method: str) -> None:
    """Add the arguments of `atk plan`, and those of `atk train` for this method."""
    if method not in _CONFIGS:
        parser.error(f"--method must be one of {', '.join(map(repr, get_args(Method)))}, got {method!r}")
    parser.add_argument("--config", action="config", help="YAML file with settings, such as a run's config.yaml")
    parser.add_argument("--method", type=Method, default="aligned", help="training method to plan for")
    parser.add_argument("--batch", type=int | None, default=None, help="short for --batch-size")
    parser.add_argument("--devices", type=int, default=1, help="number of ranks, with one device each")
    parser.add_argument(
        "--device_memory", type=float | None, default=None, help="GiB per device, to find the largest batch that fits"
    )
    parser.add_argument("--caption_tokens", type=int, default=16, help="tokens per caption, without special tokens")
    for name, unit in (
        ("matmul_tflops", "rate of matrix products, in TFLOP/s"),
        ("bandwidth_gb", "memory bandwidth, in GB/s"),
        ("interconnect_gb", "rate at which a rank receives data, in GB/s"),
    ):
        help_text = f"assumed {unit}; null uses that of --device"
        parser.add_argument(f"--{name}", type=float | None, default=None, help=help_text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name in _IGNORED:
        parser.add_argument(f"--{name}", default=None, help="ignored")
    config = _CONFIGS[method]
    parser.add_class_arguments(config, skip=set(_IGNORED) & {field.name for field in fields(config)})


def run(arguments: Namespace) -> None:
    """Print the plan.

    Raises:
        ValueError: the configuration cannot be planned, or a value is out of range.
    """
    config = _config(arguments)
    resources = Resources(_rates(arguments, config), config.device == "cpu", arguments.devices, arguments.device_memory)
    result = plan(config, resources, arguments.caption_tokens)
    print(json.dumps(result.to_dict(), indent=2) if arguments.json else format_plan(result))


def _config(arguments: Namespace) -> PlanConfig:
    """The configuration of a run without its folders, and with the name of the device that runs it."""
    make = _CONFIGS[arguments.method]
    values: dict[str, Any] = {field.name: arguments[field.name] for field in fields(make) if field.name not in _IGNORED}
    if arguments.batch is not None:
        values["batch_size"] = arguments.batch
    if issubclass(make, UnlabeledConfig):
        values["unlabeled"] = ["-"]
    return on_device(make(data="-", out="-", **values), values["device"])


def _rates(arguments: Namespace, config: PlanConfig) -> Rates:
    """The rates of the device, overridden by those that the user gives."""
    given = {name: arguments[name] for name in _UNITS if arguments[name] is not None}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    bf16 = config.precision == "bf16"
    if len(given) == len(_UNITS) and config.device != "cpu":
        matmul = given["matmul_tflops"]
        return Rates.of_gpu(matmul, matmul, given["bandwidth_gb"], given["interconnect_gb"])
    values = {name.rsplit("_", 1)[0]: value * _UNITS[name] for name, value in given.items()}
    if "matmul" in values and not bf16:
        values["single"] = values["matmul"]
    return replace(Rates.of(config.device, bf16), **values)
