"""Compare a model with its exported programs: sizes of the files, and CPU time per call.

python benchmarks/exported_models.py

Needs the extra export. The variants take turns in one process, on one thread. CPU time depends less on the load of the
machine than elapsed time. A ClapModel is also exported as one, and called with its processor.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.clap import CLAP, ClapConfig, ModelConfig
from atk.models.export import TOKEN_INPUTS, AudioTower, Format, TextTower, export_model
from atk.models.tokenizer import import_transformers
from experiments import write_results

SENTENCE = "a dog barks twice while rain falls on the roof and an engine starts far away near some people"
WORDS = [str(word) for word in SENTENCE.split()]
CAPTIONS: list[str] = [" ".join(WORDS[index % 5 : index % 5 + 6 + index % 7]) for index in range(16)]
HTSAT = {"patch_embeds_hidden_size": 48, "hidden_size": 384, "depths": [1, 1, 2, 1]}
ROBERTA = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}


def small_clap(folder: Path) -> ModelConfig:
    """A ClapModel with random weights, of half the width of the published ones and with fewer layers."""
    config = import_transformers().ClapConfig(audio_config=HTSAT, text_config=ROBERTA, projection_dim=128)
    config.save_pretrained(folder)
    import_transformers().ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50).save_pretrained(folder)
    return ModelConfig(clap=ClapConfig(str(folder), random_init=True))


MODELS: dict[str, Callable[[Path], ModelConfig]] = {
    "small encoders (the defaults)": lambda _: ModelConfig(),
    "small ClapModel": small_clap,
    "ClapModel (HTS-AT and RoBERTa)": lambda _: ModelConfig(clap=ClapConfig(random_init=True)),
}
VARIANTS = ("eager", "torch-export", "onnx", "transformers")
CLIPS, SECONDS = 8, 5.0


def inputs_of(model: CLAP, tower: str) -> tuple[Tensor, ...]:
    """What a tower is called with: clips of full length, or captions of 6 to 12 words."""
    if tower == "audio":
        samples = round(SECONDS * model.sample_rate)
        return 0.1 * torch.randn(CLIPS, samples), torch.full((CLIPS,), samples)
    tokens = model.tokenize(CAPTIONS)
    return tuple(tokens[name] for name in TOKEN_INPUTS)


def session_call(path: Path, names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """A call of an ONNX file that returns the global vectors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in used}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def clap_call(folder: Path, tower: str, inputs: tuple[Tensor, ...], sample_rate: int) -> Callable[[], Tensor]:
    """A call of a ClapModel folder by transformers, the processor's features of the audio included."""
    transformers = import_transformers()
    clap = transformers.ClapModel.from_pretrained(folder).eval()
    extractor = transformers.ClapProcessor.from_pretrained(folder).feature_extractor

    def call() -> Tensor:
        if tower == "audio":
            features = extractor(list(inputs[0].numpy()), sampling_rate=sample_rate, return_tensors="pt")
            output = clap.get_audio_features(**features)
        else:
            output = clap.get_text_features(**dict(zip(TOKEN_INPUTS[:2], inputs[:2], strict=True)))
        pooled = output if isinstance(output, Tensor) else output.pooler_output  # transformers 4 or 5
        return F.normalize(pooled, dim=-1)

    return call


def calls_of(model: CLAP, folder: Path, tower: str) -> dict[str, Callable[[], Tensor]]:
    """A call of each variant of a tower that returns the global vectors."""
    inputs = inputs_of(model, tower)
    eager: nn.Module = (AudioTower if tower == "audio" else TextTower)(model)
    program = torch.export.load(folder / "torch-export" / f"{tower}.pt2").module()
    names = ("audio", "lengths") if tower == "audio" else TOKEN_INPUTS
    calls: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: eager(*inputs)[0],
        "torch-export": lambda: program(*inputs)[0],
        "onnx": session_call(folder / "onnx" / f"{tower}.onnx", names, inputs),
    }
    if (folder / "transformers").is_dir():
        calls["transformers"] = clap_call(folder / "transformers", tower, inputs, model.sample_rate)
    return calls


def mebibytes(folder: Path, tower: str) -> float:
    """Size of the files of a tower; ONNX keeps large weights beside the graph."""
    return sum(file.stat().st_size for file in folder.glob(f"{tower}.*")) / 2**20


@torch.no_grad()
def measure(name: str, config: Callable[[Path], ModelConfig], rounds: int) -> list[dict[str, Any]]:
    """One row per tower and variant."""
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = CLAP.create(config(folder / "config"), CAPTIONS).eval()
        model.save_pretrained(folder / "eager")
        formats: list[Format] = ["torch-export", "onnx"]
        if model.config.clap.enabled:
            formats.append("transformers")
        for variant in formats:
            export_model(model, folder / variant, variant)
        for tower in ("audio", "text"):
            calls = calls_of(model, folder, tower)
            expected = calls["eager"]()
            errors = {variant: float((call() - expected).abs().max()) for variant, call in calls.items()}
            times: dict[str, list[float]] = {variant: [] for variant in calls}
            for _ in range(rounds):
                for variant, call in calls.items():
                    start = time.process_time()
                    call()
                    times[variant].append(1000 * (time.process_time() - start))
            parameters = sum(value.numel() * value.element_size() for value in _tower(model, tower).parameters())
            for variant in calls:
                in_memory = variant in ("eager", "transformers")  # a ClapModel has one file for both towers
                size = parameters / 2**20 if in_memory else mebibytes(folder / variant, tower)
                median = statistics.median(times[variant])
                rows.append({"model": name, "tower": tower, "variant": variant, "MiB": size, "CPU ms": median})
                rows[-1] |= {"fastest ms": min(times[variant]), "error": errors[variant]}
    return rows


def _tower(model: CLAP, tower: str) -> nn.ModuleList:
    return nn.ModuleList([model.get_submodule(f"{tower}_encoder"), model.get_submodule(f"{tower}_projection")])


def table(rows: list[dict[str, Any]]) -> str:
    """One tower per line, with the variants side by side."""
    titles = [f"{variant}, {unit}" for unit in ("MiB", "CPU ms") for variant in VARIANTS]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for name, tower in dict.fromkeys((row["model"], row["tower"]) for row in rows):
        of_tower = {row["variant"]: row for row in rows if (row["model"], row["tower"]) == (name, tower)}
        cells = [
            f"{of_tower[variant][unit]:.1f}" if variant in of_tower else ""
            for unit in ("MiB", "CPU ms")
            for variant in VARIANTS
        ]
        lines.append(f"| {name}, {tower} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_page(record: dict[str, Any]) -> str:
    """The Markdown page."""
    error = max(row["error"] for row in record["rows"])
    parts = [
        "# Exported models",
        (
            f"Random weights. Audio: {CLIPS} clips of {SECONDS:g} s per call; text: {len(CAPTIONS)} captions of up to "
            f"{max(len(text.split()) for text in CAPTIONS)} words. Median CPU time of {record['rounds']} calls on one "
            "thread, the variants in turns in one process. Sizes: the weights for eager and transformers, else the "
            "files. `transformers` is the exported ClapModel, and its time includes the features of its processor. "
            f"Global vectors differ from those of eager by at most {error:.0e}."
        ),
        table(record["rows"]),
        record["interpretation"],
        f"onnxruntime {record['onnxruntime']}. Command: `python benchmarks/exported_models.py`.",
        ", ".join(f"{name}: {value}" for name, value in record["environment"].items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--interpretation", default="", help="text for the page, interpreting the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.models for row in measure(name, MODELS[name], options.rounds)]
    record = {"rounds": options.rounds, "onnxruntime": onnxruntime.__version__, "rows": rows}
    write_results(options.results / "exported_models", record, render_page, options.interpretation)
    print(table(rows))


if __name__ == "__main__":
    main()
