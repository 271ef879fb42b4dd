"""The generator of every published data set, by name."""

from support import published_captions, published_events, published_labels

from atk.data.published import SETS

MAKERS = {
    name: getattr(module, f"make_{name.replace('-', '_')}")
    for module in (published_captions, published_events, published_labels)
    for name in SETS
    if hasattr(module, f"make_{name.replace('-', '_')}")
}
