"""onnxruntime-genai's Engine behind OpenAI's completions: `python -m … FOLDER PORT`."""

import asyncio
import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime_genai
from tokenizers import Tokenizer

from bench.serving.servers.completions import Asked, SteppedEngine, Written, serve

EVENTS = 256
_TOKEN = onnxruntime_genai.EngineEventFlags.TOKEN.value
_FINISHED = onnxruntime_genai.EngineEventFlags.TURN_FINISHED.value
_FAILED = onnxruntime_genai.EngineEventFlags.FAILED.value


class GenAIEngine(SteppedEngine):
    """Its engine, run as often as there is something to do."""

    def __init__(self, folder: str) -> None:
        self._engine = onnxruntime_genai.Engine(onnxruntime_genai.Model(folder))
        self._events = self._engine.create_event_buffer(EVENTS)
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._requests: dict[int, tuple[onnxruntime_genai.Request, int]] = {}

    def add(self, asked: Asked) -> None:
        request = self._engine.create_request()
        options = onnxruntime_genai.TurnOptions(request)
        options.set_do_sample(False)
        options.set_max_generated_tokens(asked.max_tokens)
        turn = request.begin_turn(np.array(asked.prompt_ids, np.int32), options)
        self._requests[asked.number] = (request, turn)

    def drop(self, number: int) -> None:
        request, turn = self._requests.pop(number)
        request.cancel_turn(turn)
        request.close()

    def step(self) -> Iterator[Written]:
        numbers = {id(request): number for number, (request, _) in self._requests.items()}
        for event in self._engine.run(self._events):
            flags = int(event.flags)
            number = numbers.get(id(event.request))
            if number is None:
                continue
            finished = bool(flags & (_FINISHED | _FAILED))
            tokens = [event.token] if flags & _TOKEN else []
            yield Written(number, self._tokenizer.decode(tokens), len(tokens), finished)
            if finished:
                self._requests.pop(number)[0].close()


if __name__ == "__main__":
    asyncio.run(serve(lambda: GenAIEngine(sys.argv[1]), int(sys.argv[2])))
