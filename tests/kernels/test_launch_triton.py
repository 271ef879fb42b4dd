"""Launch configurations of the Triton kernels: the launch table, which overrides heuristics, and the tuner."""

import itertools
import json
import re
import types

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import DEVICE, needs_gpu_or_interpreter

from atk.kernels import availability
from atk.kernels.launch import Device, Launch, max_mean_launch
from atk.kernels.launch_attention import cross_attention_launch
from atk.kernels.pack import place_launch
from atk.kernels.sequences import frame_sizes

pytestmark = pytest.mark.triton

H200 = Device((9, 0), 132, "NVIDIA H200")
ENTRY = {
    "gpu": "NVIDIA H200", "kernel": "forward", "dtype": "bfloat16", "tokens": 32, "chunked": False, "D": 128,
    "launch": {"frames": 128, "channels": 128, "warps": 8, "stages": 4, "stationary": True},
}  # fmt: skip


def use(entries, tmp_path, monkeypatch):
    """Writes a launch table with these entries and selects it."""
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps({"entries": entries}))
    monkeypatch.setenv("ATK_LAUNCH_TABLE", str(path))


def test_an_entry_overrides_the_heuristic_for_its_class_only(tmp_path, monkeypatch):
    default = max_mean_launch("forward", torch.bfloat16, 32, False, 128, H200)
    use([ENTRY], tmp_path, monkeypatch)
    tuned = Launch(128, 128, 8, 4, True)
    assert default != tuned
    assert max_mean_launch("forward", torch.bfloat16, 32, False, 128, H200) == tuned
    for D, tokens, dtype in ((64, 32, torch.bfloat16), (128, 16, torch.bfloat16), (128, 32, torch.float16)):
        assert max_mean_launch("forward", dtype, tokens, False, D, H200) != tuned
    assert max_mean_launch("forward", torch.bfloat16, 32, False, 128, Device((9, 0), 132, "NVIDIA H100")) == default


def test_a_limit_on_registers_is_optional(tmp_path, monkeypatch):
    use([ENTRY | {"launch": ENTRY["launch"] | {"registers": 255}}], tmp_path, monkeypatch)
    limited = max_mean_launch("forward", torch.bfloat16, 32, False, 128, H200)
    assert limited == Launch(128, 128, 8, 4, True, registers=255)
    assert limited.meta()["maxnreg"] == 255 and "maxnreg" not in Launch(128, 128, 8, 4, True).meta()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "backward"}, r"entry 1: kernel must be one of 'forward', .*; got 'backward'"),
        ({"chunked": 0}, r"entry 1: chunked must be one of False, True; got 0"),
        ({"D": 100}, r"entry 1: D must be one of 32, .*; got 100"),
        ({"launch": {}}, r"entry 1: must have exactly the keys frames, .*; got \{\}"),
        ({"launch": ENTRY["launch"] | {"warps": 5}}, r"entry 1: warps must be one of 1, 2, .*; got 5"),
        ({"launch": ENTRY["launch"] | {"frames": 256}}, r"entry 1: frames must be one of 16, 32, 64, 128; got 256"),
        ({"launch": ENTRY["launch"] | {"registers": 100}}, r"entry 1: registers must be one of 128, 255; got 100"),
        ({"D": 64}, r"entry 1: channels must divide D = 64; got 128"),
        ({"launch": ENTRY["launch"] | {"channels": 64}}, r"entry 1: stationary needs captions that fit one tile"),
        ({"chunked": True}, r"entry 1: stationary needs captions that fit one tile"),
    ],
)
def test_invalid_entries_are_rejected(change, message, tmp_path, monkeypatch):
    use([ENTRY, ENTRY | change], tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        max_mean_launch("forward", torch.float32, 8, False, 16, H200)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": []}'])
def test_unreadable_tables_are_rejected(content, tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("ATK_LAUNCH_TABLE", str(path))
    with pytest.raises(ValueError, match=r"table\.json \(ATK_LAUNCH_TABLE\) cannot be read"):
        max_mean_launch("forward", torch.float32, 8, False, 16, H200)


@pytest.mark.parametrize(("capability", "works"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_gpus_are_rejected(capability, works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    reason = availability.unavailable("cuda")
    assert reason is None if works else "needs a GPU of compute capability 8.0 or newer, cuda:0 has 7.5" in reason


def test_the_gpu_of_the_tensor_counts_and_without_one_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (7, 5)][index])
    assert availability.unavailable(torch.device("cuda", 0)) is None
    for device in ("cuda:1", "cuda"):
        assert availability.unavailable(device) == "needs a GPU of compute capability 8.0 or newer, cuda:1 has 7.5"


def test_the_device_of_a_launch_is_that_of_the_tensor(monkeypatch):
    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    Device.of.cache_clear()
    device = Device.of(torch.device("cuda", 5))
    Device.of.cache_clear()
    assert device == Device((9, 0), 132, "NVIDIA H200")
    assert availability.unavailable(torch.device("meta")) == "runs on CUDA tensors, not on meta"


def test_amd_gpus_are_refused_and_never_taken_for_hopper(monkeypatch):
    assert H200.has_wgmma and Device((10, 0), 148).has_wgmma and not Device((12, 0), 170).has_wgmma
    monkeypatch.setattr(torch.version, "hip", "7.0.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 4))
    assert re.match(r"the Triton kernels need an NVIDIA GPU; [^\n]*$", availability.unavailable("cuda:0"))
    assert not Device((9, 4), 304, "AMD Instinct MI300X").has_wgmma


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", [H200, Device((8, 0), 108)], ids=str)
def test_the_tables_of_frame_tiles_that_are_prepared_serve_every_launch(dtype, device):
    for kernel in ("forward", "grad_audio", "grad_text"):
        for tokens in (8, 16, 32, 64):
            for D in (32, 64, 128, 192, 256, 768):
                assert max_mean_launch(kernel, dtype, tokens, False, D, device).frames in frame_sizes(dtype)


def test_launches_without_spills_for_the_versions_of_triton_that_are_not_installed():
    """`make triton` compiles with all of them."""
    ampere, blackwell, desktop_blackwell = (Device(capability, 100) for capability in ((8, 6), (10, 0), (12, 0)))
    for device, tokens in ((blackwell, 64), (ampere, 32), (desktop_blackwell, 8), (desktop_blackwell, 64)):
        assert max_mean_launch("forward", torch.float32, tokens, False, 128, device).registers == 128  # 3.4 to 3.7
    for device in (ampere, desktop_blackwell):
        assert cross_attention_launch("attend", torch.float32, 768, 12, device).registers == 128  # 3.7, 3.8
    assert max_mean_launch("forward", torch.float32, 32, False, 128, blackwell).registers is None
    assert place_launch(desktop_blackwell) == {"maxnreg": 64} and not place_launch(ampere)  # 3.8
    for dtype in (torch.bfloat16, torch.float16):
        tiles = {
            device: cross_attention_launch("grad_query", dtype, 768, 12, device)
            for device in (ampere, desktop_blackwell)
        }
        assert tiles[desktop_blackwell].rows == 128 and tiles[ampere].rows == 64  # 3.4
    assert cross_attention_launch("grad_key", torch.float32, 768, 12, desktop_blackwell).rows == 32  # 3.4, 3.6


@needs_gpu_or_interpreter
def test_the_tuner_writes_a_table_that_is_used(tmp_path, monkeypatch):
    from atk.kernels.tune import tune

    def choose(kernel, D, chunked):
        stationary = {"stationary": False} if kernel == "forward" else {}
        return [Launch(frames, 16, 4, 2, **stationary) for frames in (48, 16, 128)]  # 48 is not a power of two

    lines = []
    path = tmp_path / "table.json"
    shapes = [(2, 3, 5, 7, 32)]
    tuned = tune(shapes, [torch.float32], path, device=DEVICE, repeats=1, choose=choose, report=lines.append)
    assert (tuned.tried, tuned.failed, tuned.wrong, len(lines)) == (9, 3, 0, 3)
    assert [entry["kernel"] for entry in tuned.entries] == ["forward", "grad_audio", "grad_text"]
    assert json.loads(path.read_text()) == {"entries": tuned.entries}
    monkeypatch.setenv("ATK_LAUNCH_TABLE", str(path))
    device = Device.of(torch.device(DEVICE))
    for entry in tuned.entries:
        assert max_mean_launch(entry["kernel"], torch.float32, 8, False, 32, device) == Launch(**entry["launch"])


def test_the_tuner_tries_candidates_near_the_default_first():
    from atk.kernels.tune import _nearest_first, candidates

    default = max_mean_launch("forward", torch.bfloat16, 32, False, 128, H200)
    order = _nearest_first(candidates("forward", 128, False), default)
    assert set(order) == set(candidates("forward", 128, False)) and order[0] == default
    fields = ("frames", "channels", "warps", "stages", "stationary", "registers")
    distances = [sum(getattr(launch, name) != getattr(default, name) for name in fields) for launch in order]
    assert distances == sorted(distances) and distances[:9] == [0, *[1] * 7, 2]
    tiles = {(launch.channels, launch.stationary) for launch in candidates("grad_text", 64, False)}
    assert {channels for channels, _ in tiles} == {32, 64}


def test_the_tuner_counts_rejected_launches_and_stops_at_bugs():
    from triton.runtime.errors import OutOfResources

    from atk.kernels.tune import Tuned, _matches

    def fail(error):
        def call():
            raise error

        return call

    tuned, result = Tuned([]), torch.zeros(2)
    assert not _matches(fail(OutOfResources(300, 200, "shared memory")), result, result.clone(), 0.1, tuned)
    assert (tuned.tried, tuned.failed, tuned.wrong) == (1, 1, 0)
    with pytest.raises(ZeroDivisionError):
        _matches(fail(ZeroDivisionError()), result, result.clone(), 0.1, tuned)


def test_the_tuner_times_a_gpu_by_its_events(monkeypatch):
    from atk.kernels.tune import _seconds

    clock = itertools.accumulate([0.0, 5.0, 1.0, 2.0, 1.0, 900.0])  # ms at each event

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    calls = []
    assert _seconds(lambda: calls.append(1), 3, "cuda") == pytest.approx(5e-3) and len(calls) == 4


@needs_gpu_or_interpreter
def test_the_tuner_skips_candidates_with_wrong_results(tmp_path, monkeypatch):
    from atk.kernels import tune

    wrong = Launch(64, 16, 8, 3, stationary=False)

    class Faulty(tune.Problem):
        def forward(self, group, sim, index, weights=None):
            super().forward(group, sim, index, weights)
            if self.launches.get("forward") is wrong:
                sim += 1

    monkeypatch.setattr(tune, "Problem", Faulty)
    tuned = tune.tune(
        [(2, 2, 3, 3, 16)], [torch.float32], tmp_path / "table.json", device=DEVICE, repeats=1, report=str,
        choose=lambda kernel, D, chunked: [wrong] if kernel == "forward" else [],
    )  # fmt: skip
    assert (tuned.tried, tuned.failed, tuned.wrong) == (1, 0, 1)
