"""A sentence encoder and a search bundle of a few hundred kilobytes: random weights, all else as compress makes it."""

import json
import tempfile
from pathlib import Path

import msgspec
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from bundle.fusion import HybridRanking
from bundle.precision import EmbeddingFormat
from compress.code_search.bundling import write_exports, write_search_bundle
from compress.code_search.encoders import load_encoder
from compress.code_search.recipe import SearchData, SearchRecipe, SearchStudent, SearchTeacher

MAX_TOKENS = 48
WIDTH = 64


def make_tiny_encoder(folder: Path, layers: int = 3) -> None:
    """A random BERT with mean pooling, as sentence-transformers saves one, and a tokenizer of its own."""
    words = BertWordPieceTokenizer()
    package = Path(json.__file__).parent
    words.train([str(file) for file in sorted(package.glob("*.py"))], vocab_size=600, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    with tempfile.TemporaryDirectory() as scratch:
        BertModel(config).save_pretrained(scratch)
        BertTokenizerFast(tokenizer_object=words._tokenizer).save_pretrained(scratch)
        modules = [Transformer(scratch), Pooling(WIDTH), Normalize()]
    SentenceTransformer(modules=modules).save_pretrained(str(folder), create_model_card=False)


def make_tiny_search_bundle(encoder: Path, folder: Path) -> Path:
    """Write a search bundle of `encoder`, whose embeddings may be halved. Returns the folder of the bundle."""
    recipe = SearchRecipe(
        task="search",
        name="tiny",
        data=SearchData(corpus=["stdlib"], max_tokens=MAX_TOKENS),
        teacher=SearchTeacher(model=str(encoder)),
        student=SearchStudent(layers=(1,)),
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        exported, no_report = Path(scratch) / "exported", Path(scratch) / "report"
        texts = Path(json.__file__).with_name("decoder.py").read_text().splitlines()
        write_exports(load_encoder(str(encoder), MAX_TOKENS), (WIDTH // 2,), [line for line in texts if line], exported)
        no_report.mkdir()
        for name in ("report.json", "report.html"):
            (no_report / name).write_bytes(msgspec.json.encode({}))
        write_search_bundle(recipe, exported, no_report, {}, {}, HybridRanking(0.5), EmbeddingFormat(), folder)
    return folder
