"""The engine against implementations that know nothing of rows, chunks and batches."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from bundle.grammar import AnswerGrammar
from bundle.manifest import open_bundle
from compress.export.onnx_generate import OnnxLoop
from serve.engine.base import GenerationRequest
from serve.engine.batching import BatchingEngine
from tests.serve.conftest import complete, random_ids, unit_requests

REFERENCE_TOKENS = 40

StartEngine = Callable[..., BatchingEngine]


async def test_tokens_and_log_probabilities_equal_a_plain_loop_over_transformers(
    tiny_checkpoint: Path, tiny_float_bundle: Path, start_engine: StartEngine
) -> None:
    """The reference recomputes the whole sequence for every token: no cache, no rows, no batch."""
    bundle = open_bundle(tiny_float_bundle)
    model = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    manifest = bundle.manifest
    grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
    requests = unit_requests(bundle, 3)
    engine = start_engine(bundle)
    answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    torch.set_num_threads(1)
    for request, answer in zip(requests, answers, strict=True):
        matcher = grammar.matcher(request.rules, request.lines)
        expected = [(token, 0.0) for token in matcher.take_forced()]
        while not matcher.finished and len(expected) < REFERENCE_TOKENS:
            ids = [*request.prompt_ids, *(token for token, _ in expected)]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            token = int(logits.masked_fill(~torch.from_numpy(matcher.allowed()), -torch.inf).argmax())
            expected.append((token, float(logits.log_softmax(-1)[token])))
            matcher.consume(token)
            expected += [(forced, 0.0) for forced in matcher.take_forced()]
        compared = answer[: len(expected)]
        assert [token.id for token in compared] == [token for token, _ in expected]
        assert np.allclose([token.logprob for token in compared], [value for _, value in expected], atol=1e-3)


@pytest.mark.parametrize("length", [1, 2, 60, 256, 257, 258, 700])
@pytest.mark.parametrize("export", ["tiny_bundle", "tiny_int8_bundle", "tiny_cuda_bundle"])
async def test_free_text_equals_a_plain_loop_over_the_same_graphs(
    export: str, start_engine: StartEngine, length: int, request: pytest.FixtureRequest
) -> None:
    """The loop computes a prompt in one call: lengths around a chunk's are those that could go wrong."""
    bundle = open_bundle(request.getfixturevalue(export))
    loop = OnnxLoop(bundle.export_folder("onnx"), bundle.manifest.model.head_dim, threads=1)
    ids = random_ids(length, length)
    (eos,) = bundle.manifest.eos_token_ids
    expected = loop.answer(list(ids), eos, REFERENCE_TOKENS)
    asked = GenerationRequest(ids, constrained=False, max_tokens=REFERENCE_TOKENS)
    answer = await complete(start_engine(bundle), asked)
    assert [token.id for token in answer] == [token for token in expected.ids if token != eos]
    assert np.allclose([token.logprob for token in answer], expected.logprobs[: len(answer)], atol=1e-3)
