"""`python -m bench.serve` in small: the real server, the clients that measure it, and the smallest server of others."""

import ast
import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from bench import engine, overhead
from bench.docs import write_figures
from bench.serving.asking import Answered, Load, complete, connections, under_load
from bench.serving.measure import ApiTime, Measured, ProjectTime, measure
from bench.serving.models import Model
from bench.serving.peer import Peer
from bench.serving.peers.ours import OurCompletions, Ours
from bench.serving.results import markdown, plot
from bench.serving.rounds import median_of
from bench.serving.servers.completions import Asked, SteppedEngine, Written, serve
from bench.serving.workload import Project, Question, Workload
from bundle.manifest import open_bundle
from tests.support.server_process import free_port

FUNCTION = "def f{n}(a, b=[]):\n    if a == None:\n        return b[{n}]\n    return a"


@pytest.fixture
def model(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> Model:
    return Model("tiny", tiny_bundle, tiny_checkpoint, tmp_path, context=1024, max_tokens=8, random=False)


def _questions(count: int) -> list[Question]:
    codes = [FUNCTION.format(n=n) for n in range(count)]
    return [Question(code, f"<|im_start|>python\n{code}<|im_end|>", []) for code in codes]


def _project(first: int) -> Project:
    questions = _questions(3)
    return Project({f"{n}.py": FUNCTION.format(n=first + n) for n in range(3)}, questions)


def test_our_server_is_measured_through_analyses_and_a_project(model: Model) -> None:
    projects = (_project(1000), _project(1001))
    measured = measure(Ours(), model, Path(sys.executable), _questions(9), projects, [1, 4], 60)
    assert [load.clients for load in measured.loads] == [1, 4]
    for load in measured.loads:
        assert load.answers > 0 and load.failures == 0
        assert load.tokens_per_s > load.analyses_per_s > 0
        assert load.latency_p99 >= load.latency_p50 > 0
    assert measured.project.units == 3
    assert measured.project.cold_s > 0 and measured.project.changed_s > 0
    assert [each.clients for each in measured.api] == [1, 4]
    # A request contains what it asked the engine: one unit.
    assert all(each.request_s > each.engine_s > 0 for each in measured.api)
    assert measured.start_s > 0 and measured.peak_bytes > 10_000_000


def test_our_server_is_measured_through_completions_as_peers_are(model: Model) -> None:
    measured = measure(OurCompletions(), model, Path(sys.executable), _questions(9), None, [2], 60)
    (load,) = measured.loads
    assert load.answers > 0 and load.failures == 0
    assert load.latency_p50 >= load.first_text_p50 > 0
    assert measured.api == [] and measured.project is None


def _measured(speed: float, changed_s: float | None = 1.0) -> Measured:
    load = Load(32, 10, 0, speed, 2 * speed, None, None, 1 / speed, 1 / speed)
    times = ProjectTime(units=3, cold_s=10.0, changed_s=changed_s)
    return Measured("ours", "ours", None, speed, int(speed), [load], times, [ApiTime(32, 1.0 + speed, 1.0)])


def test_of_several_rounds_the_median_counts_with_what_was_measured_beside_it() -> None:
    rounds = [_measured(300.0), _measured(100.0, None), _measured(200.0, 5.0)]
    median = median_of([*rounds, Measured("ours", "ours", absent="its port was taken")])
    assert median.absent is None
    (load,) = median.loads
    assert load == msgspec.structs.replace(rounds[2].loads[0], rounds=[100.0, 200.0, 300.0])
    assert median.start_s == 200.0 and median.api == rounds[2].api
    assert median.peak_bytes == 300
    assert median.project == rounds[2].project  # 2 times as fast again; 10 in the first, and too long in the second
    assert "| ours | 32 | 200.0 (100.0 to 300.0) | 400 |" in markdown("tiny", [median])


def test_who_is_absent_in_every_round_is_absent() -> None:
    absent = Measured("ours", "ours", absent="not installed")
    assert median_of([absent, absent]) == absent


class _Counting(SteppedEngine):
    """Writes one token a step to each request, as many as it may have; knows who left."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.dropped: list[int] = []

    def add(self, asked: Asked) -> None:
        self.left[asked.number] = asked.max_tokens

    def drop(self, number: int) -> None:
        del self.left[number]
        self.dropped.append(number)

    def step(self) -> Iterator[Written]:
        for number in list(self.left):
            self.left[number] -= 1
            finished = not self.left[number]
            if finished:
                del self.left[number]
            yield Written(number, "x", 1, finished)


def _body(max_tokens: int) -> bytes:
    return msgspec.json.encode({"prompt": [1, 2, 3], "max_tokens": max_tokens})


async def test_the_smallest_server_streams_many_answers_at_once_and_drops_who_leaves() -> None:
    engine, port = _Counting(), free_port()
    serving = asyncio.create_task(serve(lambda: engine, port))
    url = f"http://127.0.0.1:{port}/v1/completions"
    async with connections(8) as session:
        await _until_it_listens(session, port)
        answers = await asyncio.gather(*(complete(session, url, _body(n)) for n in (1, 5, 20)))
        assert [answer.tokens for answer in answers] == [1, 5, 20]
        assert all(answer.asked < answer.first_text <= answer.ended for answer in answers)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(complete(session, url, _body(10**9)), 0.2)
        for _ in range(500):
            if engine.dropped:
                break
            await asyncio.sleep(0.01)
        assert len(engine.dropped) == 1 and engine.left == {}
    serving.cancel()


async def _until_it_listens(session: aiohttp.ClientSession, port: int) -> None:
    while True:
        try:
            async with session.get(f"http://127.0.0.1:{port}/health") as response:
                assert response.status == 200
                return
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.01)


async def test_refused_requests_are_counted_as_failures() -> None:
    async def refuse(body: bytes):
        raise aiohttp.ClientPayloadError("no")

    load = await under_load(refuse, [b""] * 4, clients=2, seconds=60)
    assert load.failures == 4
    assert load.answers == 0 and load.tokens_per_s == 0


async def test_answers_a_second_are_those_of_whole_waves_where_a_window_ends_in_the_middle_of_one() -> None:
    async def answer_all_at_once(body: bytes) -> Answered:
        asked = time.perf_counter()
        await asyncio.sleep(0.2)
        return Answered(asked, None, time.perf_counter(), tokens=1)

    load = await under_load(answer_all_at_once, [b""] * 400, clients=4, seconds=0.25)
    # Little's law: what is under way is what comes in a second, times how long each takes.
    assert load.analyses_per_s * load.latency_p50 == pytest.approx(4, rel=0.1)


def test_the_changed_project_parses_and_differs_in_few_units(tiny_bundle: Path) -> None:
    workload = Workload(tiny_bundle)
    project = workload.project()
    changed = workload.changed(project)
    assert project.files.keys() == changed.files.keys()
    for code in changed.files.values():
        ast.parse(code)
    known = {question.code for question in project.questions}
    new = sum(question.code not in known for question in changed.questions)
    assert len(changed.questions) > 100
    assert 0.01 < new / len(changed.questions) < 0.1


def test_absent_peers_are_named_with_how_to_install_them(tmp_path: Path) -> None:
    absent = Measured("llama.cpp", "llama.cpp server, Q4_0", absent="not installed; scripts/bench_peers.sh")
    text = markdown("nano", [absent])
    assert "llama.cpp server, Q4_0: not installed; scripts/bench_peers.sh" in text
    plot({"nano": [absent]}, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().rstrip().endswith("</svg>")


def test_the_api_is_measured_beside_the_engine(tiny_bundle: Path) -> None:
    codes = [FUNCTION.format(n=n) + "\n\n\n" + FUNCTION.format(n=n + 100) for n in range(4)]
    measured = overhead.measure(tiny_bundle, codes, clients=2)
    assert measured.units == 8
    assert measured.seconds > 0
    spent = measured.spent
    assert spent.engine > 0 and spent.loop > 0 and spent.workers >= 0
    assert spent.overhead == (spent.loop + spent.threads + spent.workers) / spent.engine


def test_every_lever_of_the_engine_is_let_go_and_taken_back(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    kept = [getattr(*lever.constant[:2]) for lever in engine.LEVERS.values() if lever.constant]
    requests = engine.unit_requests(bundle, Path(engine.__file__).parent, 2)
    speeds = engine.compare(bundle, requests, [2], threads=1, rounds=1)
    assert speeds.keys() == engine.LEVERS.keys()
    assert [getattr(*lever.constant[:2]) for lever in engine.LEVERS.values() if lever.constant] == kept
    text = engine.as_markdown(speeds, [2])
    for name, lever in engine.LEVERS.items():
        assert f"| {name} | {lever.predicted} |" in text


def test_the_docs_keep_what_stands_around_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    write_figures(file, "one", "first")
    file.write_text(f"before\n\n{file.read_text()}\nbetween\n")
    write_figures(file, "other", "of another command")
    write_figures(file, "one", "second")
    text = file.read_text()
    places = [text.index(part) for part in ("before", "second", "between", "of another command")]
    assert places == sorted(places)
    assert "first" not in text


def test_peers_differ_in_name_and_say_how_they_are_installed() -> None:
    from bench.serving.peers import PEERS

    assert len({peer.name for peer in PEERS}) == len(PEERS)
    scripts = Path(__file__).parents[2]
    for peer in PEERS:
        assert isinstance(peer, Peer)
        program = peer.install.split()[0]
        assert program == "make" or (scripts / program).is_file()
