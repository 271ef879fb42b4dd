"""The comparison of loaders: every provider loads crops of the same files."""

import pytest

pytest.importorskip("webdataset")

import data_loading


@pytest.mark.slow
@pytest.mark.parametrize("suffix", data_loading.FORMATS)
def test_every_provider_loads_full_batches(tmp_path, monkeypatch, suffix):
    for name, value in (("FILE_SECONDS", 1), ("CLIP_SECONDS", 0.5), ("BATCH", 2), ("FILE_RATE", 32000)):
        monkeypatch.setattr(data_loading, name, value)
    sources = data_loading.providers(data_loading.write_files(tmp_path, suffix, 4))
    results = data_loading.rates(sources, rounds=2, batches=1)
    assert tuple(results) == data_loading.NAMES and all(len(values) == 2 for values in results.values())
    record = {"files": 4, "rounds": 2, "rates": {suffix: results}, "interpretation": "", "environment": {"cpu": "x"}}
    assert f"| {suffix} | " in data_loading.render_page(record)
