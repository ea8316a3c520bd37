"""The page in a real browser: what a person sees, and can do with a mouse, with a keyboard and by listening."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from serve.analysis.report import Edit, Finding, Fix, SkippedUnit, UnitReport
from tests.client.reports import make_finding, make_report
from tests.client.scripted_server import Answer, problem_answer
from tests.web.conftest import Open
from tests.web.scripted_page import PageServer, Scripted, page_server

CODE = "def f(value):\n    if value == None:  # 🙂 == None\n        return 0\n    return value\n"
NONE = make_finding(
    start_line=2, end_line=2, start_column=14, end_column=16, message="`==` asks the object.", confidence=0.9
)
FIXABLE = msgspec.structs.replace(
    NONE, fix=Fix(edits=(Edit(start_line=2, start_column=14, end_line=2, end_column=16, text="is"),), verified=True)
)
SECOND = make_finding(
    rule="variable-misuse", severity="error", message="`value` looks wrong.", start_line=4, end_line=4, start_column=12,
    end_column=17, confidence=0.75,
)  # fmt: skip
KEYED = {"Content-Type": "application/problem+json"}

Serve = Callable[[Callable[[int, dict[str, Any]], Scripted]], PageServer]


def report_of(*findings: Finding, skipped: Sequence[SkippedUnit] = ()) -> tuple[str, Any]:
    return ("report", make_report("pasted.py", *findings, skipped=tuple(skipped)))


def streaming(*findings: Finding) -> Callable[[int, dict[str, Any]], Scripted]:
    """A script that finds the same in every file."""
    return lambda number, request: [*(("finding", finding) for finding in findings), report_of(*findings)]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that are stopped after the test."""
    running = []

    def start(script: Callable[[int, dict[str, Any]], Scripted]) -> PageServer:
        manager = page_server(script)
        running.append(manager)
        return manager.__enter__()

    yield start
    for manager in running:
        manager.__exit__(None, None, None)


def paste(page: Page, code: str) -> None:
    """Replace what is in the editor by what a clipboard holds."""
    page.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.locator(".cm-content").evaluate(
        """(target, code) => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", code);
            target.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        code,
    )


def code_in(page: Page) -> str:
    return "\n".join(page.locator(".cm-line").all_text_contents())


def analyse(page: Page, code: str = CODE) -> None:
    paste(page, code)
    page.get_by_role("button", name="Analyse", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Done")


def test_findings_appear_while_the_analysis_goes_on(open_page: Open, serve: Serve) -> None:
    second, end = threading.Event(), threading.Event()
    unit = UnitReport(name="f", start_line=1, end_line=2, done=1, total=3)
    skipped = SkippedUnit(name="huge", start_line=5, end_line=9, reason="too long for the context")
    server = serve(
        lambda number, request: [
            ("finding", NONE),
            ("unit", unit),
            second,
            ("finding", SECOND),
            end,
            report_of(NONE, SECOND, skipped=[skipped]),
        ]
    )
    page = open_page(server.url)
    paste(page, CODE)
    page.keyboard.press("Control+Enter")

    cards = page.locator("#findings > li")
    expect(cards).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("Analysing pasted.py: 1 of 3 units.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    second.set()
    expect(cards).to_have_count(2)
    expect(page.locator("#metrics")).to_be_empty()
    end.set()
    expect(page.get_by_role("status")).to_contain_text("1 error, 1 warning.")

    expect(cards.nth(1)).to_contain_text("Wrong variable, line 4")
    expect(cards.nth(1)).to_contain_text("confidence 75%")
    expect(page.locator(".cm-lint-marker-warning")).to_have_count(1)
    expect(page.locator(".cm-lint-marker-error")).to_have_count(1)
    expect(page.locator("#numbers")).to_contain_text("cached 40%")
    expect(page.locator("#numbers")).to_contain_text("10 read, 3 written")
    expect(page.locator("#metrics dl")).to_contain_text("lines of code2")
    expect(page.locator("#skipped")).to_contain_text("huge (lines 5 to 9): too long for the context")
    assert server.requests == [{"code": CODE, "path": "pasted.py"}]


def test_a_server_that_does_not_stream_is_shown_as_well(open_page: Open, serve: Serve) -> None:
    report = msgspec.json.encode(make_report("pasted.py", NONE))
    server = serve(lambda number, request: Answer(200, report, {"Content-Type": "application/json"}))
    page = open_page(server.url)
    analyse(page)

    expect(page.locator("#findings > li")).to_have_count(1)


def test_events_are_read_however_they_arrive(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming()).url)
    stream = (
        ': kept alive\n\nevent: finding\r\ndata: {"a":\r\ndata: "🙂"}\r\n\r\ndata:x\rdata: y: z\n\n\nevent: none\n\n'
    )
    read = page.evaluate(
        """async (stream) => {
            const { events } = await import("/page/api.js");
            const bytes = new TextEncoder().encode(stream);
            const results = new Set();
            for (let cut = 0; cut <= bytes.length; cut++) {
                const body = new ReadableStream({
                    start(controller) {
                        controller.enqueue(bytes.slice(0, cut));
                        controller.enqueue(bytes.slice(cut));
                        controller.close();
                    },
                });
                const read = [];
                for await (const each of events(body)) read.push([each.event, each.data]);
                results.add(JSON.stringify(read));
            }
            return [...results].map(JSON.parse);
        }""",
        stream,
    )

    assert read == [[["finding", '{"a":\n"🙂"}'], ["", "x\ny: z"]]]


def test_a_message_hovers_over_what_it_is_about(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming(FIXABLE)).url)
    analyse(page)

    marked = page.locator(".cm-lintRange")
    expect(marked).to_have_text("==")  # the first of two on its line, and columns count characters, not UTF-16 units
    marked.hover()
    message = page.locator(".cm-tooltip-lint")
    expect(message).to_contain_text("== asks the object.")
    expect(message).to_contain_text("none-comparison · 90%")
    message.get_by_role("button", name="Apply fix").click()
    expect(page.locator(".cm-line").nth(1)).to_contain_text("if value is None:")


def test_columns_count_characters(open_page: Open, serve: Serve) -> None:
    finding = make_finding(start_line=1, end_line=1, start_column=6, end_column=8, rule="bare-except")
    page = open_page(serve(streaming(finding)).url)
    analyse(page, "# 🙂🙂 == None")

    expect(page.locator(".cm-lintRange")).to_have_text("==")


def test_a_fix_is_shown_as_a_diff_applied_with_one_click_and_taken_back(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming(FIXABLE, SECOND)).url)
    analyse(page)

    first = page.locator("#findings > li").first
    expect(first.locator(".removed")).to_contain_text("    if value == None:  # 🙂 == None")
    expect(first.locator(".added")).to_contain_text("    if value is None:  # 🙂 == None")
    first.get_by_role("button", name="Apply the fix in line 2").click()
    assert code_in(page) == CODE.replace("value ==", "value is")
    expect(first).to_contain_text("Fix applied.")
    expect(page.locator(".cm-lintRange")).to_have_text("value")

    page.keyboard.press("Control+z")
    assert code_in(page) == CODE
    expect(first.get_by_role("button", name="Apply the fix in line 2")).to_be_visible()
    expect(page.locator(".cm-lintRange")).to_have_count(2)


def test_a_fix_follows_its_code_and_is_gone_where_the_code_changed(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming(FIXABLE)).url)
    analyse(page)
    page.locator(".cm-content").click()
    page.keyboard.press("Control+Home")
    page.keyboard.type("# above\n")
    card = page.locator("#findings > li")
    expect(card).to_contain_text("line 3")
    card.get_by_role("button", name="Apply the fix in line 3").click()
    assert code_in(page) == "# above\n" + CODE.replace("value ==", "value is")
    page.keyboard.press("Control+z")

    card.get_by_role("button", name="Comparison to None, line 3").click()
    page.keyboard.type("!=")
    expect(card).to_contain_text("The code changed here.")
    expect(card.get_by_role("button", name="Apply the fix")).to_have_count(0)


def test_an_unverified_fix_is_never_offered(open_page: Open, serve: Serve) -> None:
    assert FIXABLE.fix is not None
    unsure = msgspec.structs.replace(FIXABLE, fix=msgspec.structs.replace(FIXABLE.fix, verified=False))
    page = open_page(serve(streaming(unsure)).url)
    analyse(page)

    expect(page.locator("#findings > li")).to_have_count(1)
    expect(page.get_by_role("button", name="Apply")).to_have_count(0)


def test_the_confidence_that_was_picked_is_asked_for(open_page: Open, serve: Serve) -> None:
    server = serve(streaming())
    page = open_page(server.url)
    page.get_by_label("the model's own thresholds").uncheck()
    page.get_by_label("confidence at least").fill("0.3")
    analyse(page)

    assert server.requests[0]["min_confidence"] == 0.3
    expect(page.get_by_role("status")).to_contain_text("no findings")


def test_a_folder_is_analysed_file_by_file_and_one_bad_file_stops_nobody(
    open_page: Open, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "project" / ".git").mkdir(parents=True)
    for name, content in {
        "a.py": CODE.encode(),
        "b.py": b"x = = 1\n",
        "c.py": b"\xff\xfe",
        "notes.txt": b"",
        ".git/hook.py": b"",
    }.items():
        (tmp_path / "project" / name).write_bytes(content)

    def answer(number: int, request: dict[str, Any]) -> Scripted:
        refused = problem_answer(422, "cannot parse the code at line 1")
        return refused if request["path"].endswith("b.py") else streaming(FIXABLE)(number, request)

    server = serve(answer)
    page = open_page(server.url, expected=("422",))
    page.locator("#folder").set_input_files(tmp_path / "project")
    expect(page.get_by_role("status")).to_have_text("3 files; 2 left out.")
    page.get_by_role("button", name="Analyse 3 files").click()

    expect(page.get_by_role("status")).to_have_text("1 file: 1 warning. 2 not analysed.")
    listed = page.get_by_role("navigation", name="Files").get_by_role("button")
    expect(listed).to_have_text(["project/a.py 1", "project/b.py not analysed", "project/c.py not analysed"])
    assert sorted(request["path"] for request in server.requests) == ["project/a.py", "project/b.py"]
    listed.nth(1).click()
    expect(page.locator("#summary")).to_contain_text("cannot parse the code at line 1")
    listed.nth(0).click()
    expect(page.locator("#findings > li")).to_have_count(1)


def test_a_dropped_file_takes_the_place_of_the_code(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming()).url)
    page.locator(".cm-content").evaluate(
        """(target, code) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([code], "dropped.py"));
            const options = { dataTransfer, bubbles: true, cancelable: true, composed: true };
            for (const type of ["dragenter", "dragover", "drop"]) target.dispatchEvent(new DragEvent(type, options));
        }""",
        "\ufeffx = 1\r\ny = 2\r\n",
    )

    expect(page.locator(".cm-line")).to_have_text(["x = 1", "y = 2", ""])
    expect(page.locator("#drop")).to_be_hidden()


def test_a_full_server_is_waited_for_and_that_is_said(open_page: Open, serve: Serve) -> None:
    def full_once(number: int, request: dict[str, Any]) -> Scripted:
        return problem_answer(503, "full", {"Retry-After": "1"}) if number == 1 else streaming(NONE)(number, request)

    server = serve(full_once)
    page = open_page(server.url, expected=("503",))
    paste(page, CODE)
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("status")).to_have_text("The server is busy. Asking again in 1 second.")
    expect(page.get_by_role("status")).to_contain_text("Done")
    assert server.requests[0] == server.requests[1]


def test_a_server_that_stays_full_is_an_error(open_page: Open, serve: Serve) -> None:
    answer = problem_answer(503, "64 analyses are in progress", {"Retry-After": "3600"})
    page = open_page(serve(lambda number, request: answer).url, expected=("503",))
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("alert")).to_contain_text("64 analyses are in progress")
    expect(page.get_by_role("button", name="Analyse", exact=True)).to_be_enabled()


def test_code_that_does_not_parse_leads_to_the_line(open_page: Open, serve: Serve) -> None:
    body = b'{"title": "The code does not parse", "detail": "at line 2", "status": 422, "line": 2, "column": 5}'
    page = open_page(serve(lambda number, request: Answer(422, body, KEYED)).url, expected=("422",))
    paste(page, "x = 1\ny = = 2\n")
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("alert")).to_contain_text("The code does not parse: at line 2")
    page.get_by_role("alert").get_by_role("button", name="Go to line 2").click()
    page.keyboard.type("3 #")
    expect(page.locator(".cm-line").nth(1)).to_have_text("y = 3 #= 2")


def test_a_server_that_is_gone_is_an_error_and_nothing_is_lost(open_page: Open, serve: Serve) -> None:
    server = serve(streaming(NONE))
    page = open_page(server.url, expected=("ERR_CONNECTION_REFUSED",))
    paste(page, CODE)
    server.stop()
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    assert code_in(page) == CODE


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ((), "ended its answer before the report"),
        ((None,), "broke off in the middle of its answer"),
        ((("error", {"title": "The server is stopping", "status": 503}),), "The server is stopping"),
    ],
    ids=["no report", "hung up", "error event"],
)
def test_an_answer_that_stops_midway_is_an_error(open_page: Open, serve: Serve, end: Any, said: str) -> None:
    page = open_page(serve(lambda number, request: [("finding", NONE), *end]).url, expected=("ERR_",))
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("alert")).to_contain_text(said)


def test_an_analysis_can_be_stopped(open_page: Open, serve: Serve) -> None:
    never = threading.Event()
    page = open_page(serve(lambda number, request: [("finding", NONE), never]).url)
    page.get_by_role("button", name="Analyse", exact=True).click()
    page.get_by_role("button", name="Stop").click()

    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Analyse", exact=True)).to_be_enabled()
    never.set()


def test_a_server_with_keys_asks_for_one_and_gets_it(open_page: Open, serve: Serve) -> None:
    server = serve(streaming(NONE))
    server.key = "right"
    page = open_page(server.url, expected=("401",))
    dialog = page.get_by_role("dialog", name="An API key, please")
    expect(dialog).to_contain_text("Send a key this server knows.")
    assert_accessible(page)
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_label("Key").fill("right")
    page.keyboard.press("Enter")

    expect(dialog).to_be_hidden()
    expect(page.locator("#model")).to_contain_text("nano")
    analyse(page)
    assert server.keys == ["Bearer right"]


def test_what_a_server_says_is_never_taken_for_html(open_page: Open, serve: Serve) -> None:
    markup = "<img src=x onerror=alert(1)>"
    finding = msgspec.structs.replace(FIXABLE, message=f"`{markup}` {markup}", rule=markup)
    page = open_page(serve(streaming(finding)).url)
    analyse(page)
    page.locator(".cm-lintRange").hover()

    expect(page.locator(".cm-tooltip-lint")).to_contain_text(markup)
    expect(page.locator("#findings > li")).to_contain_text(markup)
    expect(page.locator("img")).to_have_count(0)


def test_everything_can_be_done_with_the_keyboard(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming(FIXABLE)).url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the findings")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Analyse")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Model card")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Analyse")).to_be_visible()

    paste(page, CODE)
    page.keyboard.press("Control+Enter")
    go = page.get_by_role("button", name="Comparison to None, line 2")
    go.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")  # the editor keeps nobody in
    expect(page.locator(".cm-content")).not_to_be_focused()
    page.get_by_role("button", name="Apply the fix in line 2").focus()
    page.keyboard.press("Space")
    expect(page.locator(".cm-line").nth(1)).to_contain_text("if value is None:")


def test_the_model_card_says_what_the_evaluation_says(open_page: Open, serve: Serve) -> None:
    server = serve(streaming())
    page = open_page(f"{server.url}#card")
    card = page.get_by_role("tabpanel", name="Model card")

    expect(card).to_contain_text("28 projects the model never saw: 150 units as written and 186 with a planted defect")
    expect(card.get_by_role("img", name="F1 on planted defects: teacher 0.50, student, ONNX int4 0.41")).to_be_visible()
    expect(card.get_by_role("row", name="F1 on planted defects, of the teacher's 81% 35%")).to_be_visible()
    expect(card.get_by_role("row", name="student, ONNX int4, as served 0.85 0.12 0.21")).to_be_visible()
    expect(card.get_by_role("row", name="student, ONNX int4 1.41M 1.5 MB 75.8 MB 3,399")).to_be_visible()
    expect(card.get_by_role("row", name="Off by one 12 8 4 75% 60%")).to_be_visible()
    expect(card.get_by_role("row", name="off-by-one error Off by one 0.73")).to_be_visible()


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [(None, "This bundle carries no evaluation."), (b'{"rows": [{}]}', "is of another version than this page")],
    ids=["none", "of another version"],
)
def test_a_bundle_whose_evaluation_can_not_be_shown_has_a_card_too(
    open_page: Open, serve: Serve, evaluation: bytes | None, said: str
) -> None:
    server = serve(streaming())
    server.evaluation = evaluation
    page = open_page(f"{server.url}#card", expected=("404",))

    expect(page.get_by_role("tabpanel")).to_contain_text(said)
    expect(page.get_by_role("heading", name="The rules it can name")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def assert_accessible(page: Page) -> None:
    """axe finds no fault."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_fault(open_page: Open, serve: Serve, scheme: str, width: int) -> None:
    unit = SkippedUnit(name="huge", start_line=5, end_line=9, reason="too long")
    script = [("finding", FIXABLE), report_of(FIXABLE, SECOND, skipped=[unit])]
    page = open_page(
        serve(lambda number, request: script).url, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    analyse(page)
    page.get_by_text("Cyclomatic complexity of each function").or_(page.locator("#findings")).first.click()
    assert_accessible(page)
    page.get_by_role("tab", name="Model card").click()
    expect(page.get_by_role("heading", name="Rule by rule")).to_be_visible()
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_theme_that_was_chosen_stays(open_page: Open, serve: Serve) -> None:
    page = open_page(serve(streaming()).url, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(ground)
    page.reload()

    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(ground) == dark != light
