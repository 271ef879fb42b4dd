"""Runs tests/integrations with every version of each library that atk.integrations accepts.

    python .ci/integrations.py                        # all; writes tests/integrations/versions.json
    python .ci/integrations.py open_clip colpali      # only these

Each version is installed into a folder of its own that comes first on the path, without its dependencies but with its
PINS; everything else is that of the environment, with the packages of SUPPORT on top. Exits with status 1 if a test
fails or is skipped.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "integrations"
RESULTS = ROOT / "tests" / "integrations" / "versions.json"
PACKAGES = {  # module of atk.integrations: package in the registry
    "sentence_transformers": "sentence-transformers",
    "open_clip": "open_clip_torch",
    "colpali": "colpali-engine",
    "late_interaction_kernels": "late-interaction-kernels",
    "colbert": "colbert-ai",
    "pylate": "pylate",
    "mteb": "mteb",
    "transformers": "transformers",
    "grad_cache": "GradCache",
}
TRIED = {  # modules without install() have no list of their own
    "transformers": ("5.23.0", "5.24.0"),
    "grad_cache": ("6b3291a",),
}
SOURCES = {"grad_cache": "git+https://github.com/luyug/GradCache@{version}"}  # not in the registry
# What a library pins to older versions than those of the environment, as resolved by pip. fast-plaid, which requires a
# torch of its own, is left out: only one of PyLate's indexes uses it.
PINS = {
    "pylate": (
        "sentence-transformers==5.3.0", "transformers==5.3.0", "tokenizers==0.22.2", "huggingface-hub==1.33.0",
        "ujson==5.12.0", "fastkmeans==0.5.0",
    ),
}  # fmt: skip
# Dependencies that the environment lacks. torchvision's ops are only declared: the registry has it for CUDA alone.
SUPPORT = (
    "torchvision==0.28.0", "timm==1.0.31", "ftfy==6.3.1", "wcwidth==0.9.4", "peft==0.20.0", "accelerate==1.15.0",
    "pytrec-eval-terrier==0.5.11", "polars==2.1.0", "polars-runtime-32==2.1.0",
)  # fmt: skip


def install(folder: Path, *requirements: str) -> None:
    """Installs packages into a folder of their own, without their dependencies."""
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", folder, *requirements], check=True)


def run_tests(module: str, version: str) -> dict[str, int]:
    """Numbers of tests that passed, failed, and were skipped."""
    folder = BUILD / f"{module}-{version}"
    source = SOURCES.get(module, PACKAGES[module] + "=={version}")
    install(folder, source.format(version=version), *PINS.get(module, ()))
    path = os.pathsep.join([str(folder), str(BUILD / "support")])
    names = sorted(str(file) for file in (ROOT / "tests" / "integrations").glob(f"test_{module}*.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        *names,
    ]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True, check=False
    )
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", result.stdout)}
    if counts.keys() != {"passed"}:
        print(result.stdout[-6000:], result.stderr[-2000:], sep="\n")
    return counts


def main() -> int:
    """Runs the tests and updates the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=[], choices=[*PACKAGES, []], help="default: all")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file that is written, and kept for other modules"
    )
    options = parser.parse_args()
    modules = options.modules or list(PACKAGES)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    install(BUILD / "support", *SUPPORT)
    clean = True
    for module in modules:
        versions = TRIED.get(module) or importlib.import_module(f"atk.integrations.{module}").VERSIONS
        results[module] = {"package": PACKAGES[module], "versions": {}}
        others = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        results[module] |= others | dict(pin.split("==") for pin in PINS.get(module, ()))
        for version in versions:
            counts = run_tests(module, version)
            results[module]["versions"][version] = counts
            clean = clean and counts.keys() == {"passed"}
            print(f"{PACKAGES[module]} {version}: {counts}", flush=True)
        options.results.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
