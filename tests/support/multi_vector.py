"""Small ColBERT models of sentence-transformers and PyLate, texts, and what one training step computes."""

import torch

from atk.integrations.rebinding import import_library
from atk.models.text import train_tokenizer
from atk.models.tokenizer import import_transformers

QUERIES = ["who barks", "what sings in the morning", "cat"]
POSITIVES = ["a dog barks, loudly", "a bird sings, and sings", "the cat"]
NEGATIVES = ["the cat sings", "a dog", "a bird barks, a bird sings"]
COLUMNS = (QUERIES, POSITIVES, NEGATIVES)


def save_bert(folder):
    """Save a BERT of one layer without dropout, and its tokenizer; return the folder."""
    transformers = import_transformers()
    texts = [f"{animal} {verb}, loudly" for animal in ("a dog", "a bird", "the cat") for verb in ("barks", "sings")]
    tokenizer = train_tokenizer(texts, 300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def multi_vector_encoder(folder):
    """A model of sentence-transformers on a saved BERT, with a projection, query expansion, and a skip list."""
    modules = import_library("sentence_transformers.base.modules")
    multi_vector = import_library("sentence_transformers.multi_vector_encoder")
    expansion = {"strategy": "fixed", "attend": False, "length": 12}
    layers = [
        modules.Transformer(str(folder), query_expansion=expansion),
        modules.Dense(16, 8, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
        multi_vector.modules.MultiVectorMask(skiplist_words=[","]),
        modules.Normalize("token_embeddings"),
    ]
    return multi_vector.MultiVectorEncoder(modules=layers, device="cpu")


def multi_vector_features(model, columns=COLUMNS):
    """Inputs of the losses of sentence-transformers: a column of queries, then columns of documents."""
    tasks = ("query", "document", "document")
    return [{**model.preprocess(texts, task=task), "task": task} for task, texts in zip(tasks, columns, strict=True)]


def colbert(folder, do_query_expansion=True):
    """A model of PyLate on a saved BERT, in float64."""
    options = {"query_length": 12, "document_length": 14, "skiplist_words": [","], "embedding_size": 8}
    models = import_library("pylate.models")
    return models.ColBERT(str(folder), device="cpu", do_query_expansion=do_query_expansion, **options).double()


def colbert_features(model, columns=COLUMNS):
    """Inputs of PyLate's losses; the documents are padded to one length."""
    queries, *documents = columns
    return [model.tokenize(queries), *(model.tokenize(texts, is_query=False, pad=True) for texts in documents)]


def loss_and_step(model, loss, features, labels=None):
    """The loss, all gradients, and the weights after one step of SGD; the model gets its weights back."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.zero_grad()
    value = loss([dict(column) for column in features], labels)  # some losses change the features
    value.backward()
    values = [value.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]
    optimizer.step()
    values += [weight.detach().clone() for weight in model.parameters()]
    model.load_state_dict(before)
    return values
