"""Small real models, data and tokenizers for the tests of compress."""

import inspect
import random
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from bundle.prompt import Prompt
from bundle.rules import Catalogue, load_catalogue
from bundle.units import cut_units
from compress.data.examples import Example, draw_example, natural_example
from compress.data.tokens import TokenDataset, make_prompt

torch.set_num_threads(1)  # the tests run in two processes


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue()


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture
def model(tiny_checkpoint: Path) -> Qwen2ForCausalLM:
    """A random Qwen2 of two layers, fresh for every test."""
    return Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="session")
def prompt(catalogue: Catalogue, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    return make_prompt("compact", catalogue, tokenizer)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Short units of the standard library, some with a planted defect."""
    units = [unit for module in (textwrap, random) for unit in cut_units(inspect.getsource(module))]
    natural = [natural_example("stdlib", "m.py", unit, []) for unit in units if len(unit.lines) <= 14]
    return [draw_example(each, 0.6, random.Random(number)) for number, each in enumerate(natural)][:24]


@pytest.fixture
def dataset(examples: list[Example], prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> TokenDataset:
    return TokenDataset(examples, prompt, tokenizer.eos_token_id, max_tokens=512)
