"""A tokenizer trained on the captions, for models without a pretrained one; and the way to transformers."""

import contextlib
import importlib
from collections.abc import Iterable
from types import ModuleType


def train_bpe(
    captions: Iterable[str], vocabulary: int, special_tokens: dict[str, str], template: str, **options: object
):
    """A lower-case byte-level BPE tokenizer; the same captions give the same tokenizer.

    Args:
        captions: what it is trained on.
        vocabulary: most entries.
        special_tokens: transformers' names of them and their spellings, in the order of their numbers from 0.
        template: what an encoded caption `$A` looks like, such as `"[CLS] $A [SEP]"`.
        options: of `transformers.PreTrainedTokenizerFast`.

    Raises:
        ValueError: there is no caption to train on.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    captions = sorted(set(captions))
    if not captions:
        raise ValueError("captions: at least one caption is needed to train a tokenizer")
    # Not WordPiece: its trainer numbers "##" pieces in hash order, and a resumed run must repeat the killed one.
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=special_tokens["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in template.split() if name != "$A"]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=template, special_tokens=ids),
        ]
    )
    # add_prefix_space: transformers 4 would take it away from a tokenizer that it loads.
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, add_prefix_space=True, **special_tokens, **options
    )


def import_transformers() -> ModuleType:
    """transformers, once it can import the torchaudio that fits this torch, where there is one."""
    with contextlib.suppress(ImportError):
        importlib.import_module("atk.data.torchaudio_shim")
    return importlib.import_module("transformers")
