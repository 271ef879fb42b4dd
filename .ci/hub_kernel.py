"""Lays out the ops as a kernel repository for the Hugging Face hub.

    python .ci/hub_kernel.py build/hub

Both builds, for CUDA and for the CPU, hold the same Python files: those of atk/ops and kernels/, with relative imports.
`kernels.get_local_kernel(Path("build/hub"))` loads the one for this machine, and `hf upload
ORGANIZATION/audio-text-kernels build/hub . --repo-type kernel --revision v0` publishes both.
"""

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "audio-text-kernels"
FOLDERS = {"atk.ops": ROOT / "atk" / "ops", "atk.kernels": ROOT / "kernels"}
BACKENDS = ("cuda", "cpu")

PACKAGE = '''"""Fused kernels for audio-text learning."""

{imports}

__version__ = "{version}"
__all__ = [
    {names},
]
'''

CARD = """---
library_name: kernels
license: apache-2.0
tags:
- kernels
- triton
- contrastive-learning
- late-interaction
---

# {name}

Ops for audio-text learning that never hold all scores in memory, forward and backward. They are those of
audio-text-kernels {version}.

- `max_mean_similarity`, `max_mean_similarity_pairs`, and `max_mean_similarity_varlen`: the mean over frames of the best
  token's score (MaxSim, late interaction, FILIP), for all pairs, matching pairs, and packed sequences
- `info_nce`, `pairwise_logsumexp`, and `sigmoid_loss`: the losses of CLIP and SigLIP; `aligned_info_nce` and
  `aligned_sigmoid_loss`: the same over the max-mean similarity
- `cross_attention_difference`: suppresses what a clip shares with a reference

```python
import torch
from kernels import get_kernel

atk = get_kernel("ORGANIZATION/{name}", version={major}, trust_remote_code=True)
frames, tokens = torch.randn(64, 250, 512, device="cuda"), torch.randn(64, 32, 512, device="cuda")
scores = atk.max_mean_similarity(frames, tokens, normalize=True)  # [64, 64]
```

The docstrings give shapes, dtypes, masks, and errors. On NVIDIA GPUs of compute capability 8.0 or newer, the ops run
Triton kernels; elsewhere, plain PyTorch (`backends()` lists what runs, and why the rest does not). The C++ kernels for
CPUs, losses as modules, and trainers are in the Python package audio-text-kernels. Needs Python 3.10, torch 2.8, and
kernels 0.17 or newer.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that is created, or that an earlier run wrote")
    out = parser.parse_args().out
    if out.exists() and any(out.iterdir()) and not (out / "build" / "torch-cuda" / "metadata.json").is_file():
        sys.exit(f"{out} is not empty, and no earlier run wrote it")
    write(out)
    print(f"{out}: {', '.join(sorted(path.name for path in (out / 'build').iterdir()))}")


def write(out: Path) -> None:
    """Writes the repository to `out`, in place of what an earlier run wrote."""
    shutil.rmtree(out, ignore_errors=True)
    version, imports = interface()
    files = package(version, imports)
    major = int(version.partition(".")[0])
    for backend in BACKENDS:
        folder = out / "build" / f"torch-{backend}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
        (folder / "metadata.json").write_text(json.dumps(metadata(files, backend, major), indent=2) + "\n")
    (out / "README.md").write_text(CARD.format(name=NAME, version=version, major=major), encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out)


def interface() -> tuple[str, dict[str, list[str]]]:
    """The version of atk, and {module: names} of the ops that it exports."""
    source = (ROOT / "atk" / "__init__.py").read_text(encoding="utf-8")
    imports = {
        node.module: [alias.name for alias in node.names]
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atk.ops")
    }
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert version is not None and imports
    return version[1], imports


def package(version: str, imports: dict[str, list[str]]) -> dict[str, str]:
    """{path: content} of the package: the modules that `imports` names, those that they import, and `__init__.py`."""
    contents, pending = {}, [*imports, "atk.ops", "atk.kernels"]
    while pending:
        module = pending.pop()
        path = path_of(module)
        if path is None or module in contents:
            continue
        contents[module], imported = relative(path.read_text(encoding="utf-8"))
        pending += imported
    files = {target(module): content for module, content in sorted(contents.items())}
    lines = [f"from .{module.removeprefix('atk.')} import {', '.join(names)}" for module, names in imports.items()]
    names = sorted(name for names in imports.values() for name in names)
    files["__init__.py"] = PACKAGE.format(
        imports="\n".join(lines), version=version, names=",\n    ".join(f'"{name}"' for name in names)
    )
    return files


def path_of(module: str) -> Path | None:
    """The file of `atk.ops.NAME` or `atk.kernels.NAME`; None if there is no such module."""
    if module in FOLDERS:
        return FOLDERS[module] / "__init__.py"
    package, _, name = module.rpartition(".")
    path = FOLDERS[package] / f"{name}.py" if package in FOLDERS else None
    return path if path is not None and path.is_file() else None


def target(module: str) -> str:
    """The module's path in the package."""
    name = module.removeprefix("atk.").replace(".", "/")
    return f"{name}/__init__.py" if module in FOLDERS else f"{name}.py"


def relative(source: str) -> tuple[str, list[str]]:
    """A module of atk.ops or atk.kernels with relative imports, and the modules that it may import."""
    lines, imported = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "atk":
            index, new = node.lineno - 1, f".{node.module.removeprefix('atk')}"
            lines[index] = lines[index].replace(f"from {node.module} ", f"from {new} ", 1)
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return "".join(lines), imported


def metadata(files: dict[str, str], backend: str, version: int) -> dict[str, object]:
    """What the loader of `kernels` reads. The identifier, also the namespace of the ops, changes with the files."""
    digests = {name: hashlib.sha256(content.encode()).digest() for name, content in sorted(files.items())}
    unique = hashlib.sha256(b"".join(digests.values())).hexdigest()[:8]
    return {
        "name": NAME,
        "id": f"_{NAME.replace('-', '_')}_{backend}_{unique}",
        "version": version,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(digest).decode() for name, digest in digests.items()},
        },
    }


if __name__ == "__main__":
    main()
