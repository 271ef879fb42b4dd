"""Trains a tokenizer on the captions, for models without a pretrained one, and imports transformers on demand."""

import contextlib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from atk.extras import optional_imports
from atk.ops.checks import strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def train_bpe(
    captions: Iterable[str], vocabulary: int, special_tokens: dict[str, str], template: str, **options: object
) -> "PreTrainedTokenizerFast":
    """Train a lowercase byte-level BPE tokenizer. The result depends only on the set of captions.

    Args:
        captions: training data.
        vocabulary: maximum size of the vocabulary.
        special_tokens: spelling of each special token by its name in transformers, in the order of their ids from 0.
        template: format of an encoded caption `$A`, such as `"[CLS] $A [SEP]"`.
        options: keyword arguments of `transformers.PreTrainedTokenizerFast`.

    Raises:
        TypeError: `captions` is a single string, or not all of them are strings.
        ValueError: `captions` is empty.
    """
    with optional_imports:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    given = captions if isinstance(captions, str) else list(captions)
    strings("captions", given)
    texts = sorted(set(given))
    if not texts:
        raise ValueError("captions: at least one caption is needed to train a tokenizer")
    # Not WordPiece: its trainer assigns ids to "##" pieces in hash order, and resumed runs must be reproducible.
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
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in template.split() if name != "$A"]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=template, special_tokens=ids),
        ]
    )
    # add_prefix_space: transformers 4 would remove it from a tokenizer that it loads.
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, add_prefix_space=True, **special_tokens, **options
    )


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a decoder from a local folder or the hub.

    Raises:
        ValueError: it cannot be loaded, or has no start, end, and padding tokens, or does not end texts with the end
            token.
    """
    try:
        tokenizer = import_transformers().AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"decoder.tokenizer: cannot load {name!r}: {str(error).splitlines()[0]}") from error
    ids = special_ids(tokenizer)
    if missing := [key for key, value in ids.items() if value is None]:
        raise ValueError(f"decoder.tokenizer: {name!r} has no {missing[0]}")
    if (tokenizer("a")["input_ids"] or [None])[-1] != ids["eos_token_id"]:
        raise ValueError(f"decoder.tokenizer: {name!r} does not end texts with its end token")
    tokenizer.padding_side = "right"
    return tokenizer


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The special tokens of a decoder, as keyword arguments of `transformers.BartConfig`.

    The decoder starts with the start token; if texts begin with that themselves, with the end token, as in BART.
    """
    bos = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    begins = (tokenizer("a")["input_ids"] or [None])[0] == bos
    return {
        "bos_token_id": bos,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": eos,
        "forced_eos_token_id": eos,
        "decoder_start_token_id": eos if begins else bos,
    }


def import_transformers() -> ModuleType:
    """Import transformers, after the shim that lets it import a torchaudio that was built for another torch."""
    with contextlib.suppress(ImportError):
        importlib.import_module("atk._torchaudio")
    with optional_imports:
        return importlib.import_module("transformers")
