"""OpenVINO GenAI's continuous batching behind OpenAI's completions: `python -m … FOLDER PORT`."""

import asyncio
import sys
from collections.abc import Iterator

import numpy as np
import openvino
import openvino_genai
from tokenizers import Tokenizer

from bench.serving.servers.completions import Asked, SteppedEngine, Written, serve

CACHE_GB = 1


class ContinuousBatching(SteppedEngine):
    """A pipeline that is stepped."""

    def __init__(self, folder: str) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduling, "CPU")
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._handles: dict[int, openvino_genai.GenerationHandle] = {}

    def add(self, asked: Asked) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = asked.max_tokens
        config.set_eos_token_id(self._pipeline.get_config().eos_token_id)
        ids = openvino.Tensor(np.array([asked.prompt_ids], np.int64))
        self._handles[asked.number] = self._pipeline.add_request(asked.number, ids, config)

    def drop(self, number: int) -> None:
        self._handles.pop(number).stop()

    def step(self) -> Iterator[Written]:
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        for number, handle in list(self._handles.items()):
            ids = []
            while handle.can_read():
                ids += next(iter(handle.read().values())).generated_ids
            finished = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            if ids or finished:
                yield Written(number, self._tokenizer.decode(ids), len(ids), finished)
            if finished:
                del self._handles[number]


if __name__ == "__main__":
    asyncio.run(serve(lambda: ContinuousBatching(sys.argv[1]), int(sys.argv[2])))
