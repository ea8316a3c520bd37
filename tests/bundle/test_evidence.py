"""What a unit's syntax tree lets a finding say, and what it contradicts."""

import random
from pathlib import Path

import pytest

from bundle.answer import AnswerFinding, placed_line
from bundle.evidence import Evidence, keeps_meaning
from bundle.rules import load_catalogue
from bundle.units import cut_units
from compress.data.examples import natural_example, planted_example
from compress.data.hygiene import hygiene_labels

# The rule, the unit, the text it marks, and a wider text around it that may be marked just as well.
BORNE_OUT = [
    ("variable-misuse", "def f(a, b):\n    return a", "a", "return a"),
    ("wrong-comparison", "def f(a):\n    return a < 1", "<", "< 1"),
    ("wrong-operator", "def f(a):\n    a += 1\n    return a + 1", "+", "+ 1"),
    ("wrong-operator", "def f(a):\n    return a or 1", "or", "or 1"),
    ("negated-condition", "def f(a):\n    if not a:\n        return 1", "if not a", "if not a"),
    ("negated-condition", "def f(a):\n    return 1 if a else 2", "if a", "1 if a"),
    ("swapped-arguments", "def f(a, b):\n    return g(b, a)", "b, a", "g(b, a)"),
    ("off-by-one", "def f(a):\n    return a[1]", "1", "a[1]"),
    ("wrong-exception", "def f(a):\n    raise KeyError(a)", "KeyError", "raise KeyError"),
    (
        "wrong-exception",
        "def f(a):\n    try:\n        g()\n    except KeyError:\n        h()",
        "KeyError",
        "except KeyError",
    ),
    ("mutable-default", "def f(a=[]):\n    return a", "[]", "a=[]"),
    ("mutable-default", "def f(*, a=dict()):\n    return a", "dict()", "a=dict()"),
    ("bare-except", "def f():\n    try:\n        g()\n    except:\n        h()", "except", "except:"),
    ("none-comparison", "def f(a):\n    return a == None", "a == None", "return a == None"),
    ("bool-comparison", "def f(a):\n    return a != True", "a != True", "return a != True"),
    ("unused-variable", "def f(a):\n    b = a\n    return a", "b", "b = a"),
    (
        "unused-variable",
        "def f():\n    try:\n        g()\n    except OSError as error:\n        h()",
        "error",
        "as error",
    ),
    ("shadowed-builtin", "def f(id):\n    return id", "id", "def f(id)"),
    ("shadowed-builtin", "def f():\n    list = 1\n    return list", "list", "list = 1"),
    ("shadowed-builtin", "import a as next\nx = next", "next", "a as next"),
    ("unused-loop-variable", "def f(a):\n    for b, c in a:\n        g(c)", "b", "for b"),
    (
        "silent-except",
        "def f():\n    try:\n        g()\n    except Exception:\n        pass",
        "except Exception:",
        "except",
    ),
    (
        "raise-without-from",
        "def f():\n    try:\n        g()\n    except A:\n        raise B(1)",
        "raise B(1)",
        "raise B",
    ),
    ("lambda-assignment", "def f():\n    g = lambda x: x\n    return g", "g = lambda", "lambda x"),
]
# The rule, the unit, and a text in it at which nothing stands that the rule could be about.
CONTRADICTED = [
    ("variable-misuse", "def f(a, b):\n    return 1", "return 1"),
    ("wrong-comparison", "def f(a):\n    return a + 1", "+"),
    ("wrong-operator", "def f(a):\n    return a < 1", "<"),
    ("negated-condition", "def f(a):\n    return not a", "not a"),
    ("swapped-arguments", "def f(a):\n    return g(a)", "g(a)"),
    ("off-by-one", "def f(a):\n    return a[-True]", "True"),
    ("wrong-exception", "def f(a):\n    return KeyError", "KeyError"),
    ("mutable-default", "def f(a=()):\n    return a or []", "()"),
    ("mutable-default", "def f(a=None):\n    a = []\n    return a", "[]"),
    ("bare-except", "def f():\n    try:\n        g()\n    except OSError:\n        h()", "except"),
    ("bare-except", "def f():\n    try:\n        g()\n    except:\n        h()\n        raise", "except"),
    ("none-comparison", "def f(a):\n    return a is None", "a is None"),
    ("bool-comparison", "def f(a):\n    return a == 1.5", "a == 1.5"),
    ("unused-variable", "def f(a):\n    b = a\n    return b", "b = a"),
    ("unused-variable", "class A:\n    b = 1\n    c = 2", "b = 1"),
    ("shadowed-builtin", "def f(name: str) -> int:\n    return name", "str"),
    ("shadowed-builtin", "def f(id):\n    return id", "return id"),
    ("unused-loop-variable", "def f(a):\n    for b in a:\n        g(b)", "for b"),
    ("silent-except", "def f():\n    try:\n        g()\n    except OSError:\n        h()", "except OSError:"),
    ("raise-without-from", "def f():\n    raise B(1)", "raise B(1)"),
    ("raise-without-from", "def f():\n    try:\n        g()\n    except A as e:\n        raise B from e", "raise B"),
    ("lambda-assignment", "def f(g):\n    g.h = lambda x: x", "g.h = lambda"),
]


def finding(rule: str, code: str, at: str) -> tuple[Evidence, AnswerFinding]:
    texts = code.split("\n")
    line = next(number for number, text in enumerate(texts, start=1) if at in text)
    found = AnswerFinding(rule, line, at, None)
    assert placed_line(found, texts) == line, "the case marks a text that stands once"
    return Evidence(texts), found


@pytest.mark.parametrize(("rule", "code", "at", "wider"), BORNE_OUT)
def test_what_a_rule_is_about_is_not_contradicted(rule: str, code: str, at: str, wider: str) -> None:
    texts = code.split("\n")
    for marked in (at, wider):
        line = max(number for number, text in enumerate(texts, start=1) if wider in text)
        assert not Evidence(texts).contradicts(AnswerFinding(rule, line, marked, None)), marked


@pytest.mark.parametrize(("rule", "code", "at"), CONTRADICTED)
def test_a_rule_that_has_nothing_to_be_about_is_contradicted(rule: str, code: str, at: str) -> None:
    evidence, found = finding(rule, code, at)
    assert evidence.contradicts(found)


def test_every_rule_of_the_catalogue_has_both_cases() -> None:
    rules = set(load_catalogue().ids)
    assert {case[0] for case in BORNE_OUT} == {case[0] for case in CONTRADICTED} == rules


def test_what_stands_behind_other_letters_is_found_at_its_place() -> None:
    code = "def f(é, id):\n    ü = 'ö' == None\n    return ü, é"
    assert not Evidence(code.split("\n")).contradicts(finding("shadowed-builtin", code, "id")[1])
    assert not Evidence(code.split("\n")).contradicts(finding("none-comparison", code, "None")[1])
    assert Evidence(code.split("\n")).contradicts(finding("none-comparison", code, "ü =")[1])


@pytest.mark.parametrize("code", ["if x:", "def f(:", "x = '\0'"])
def test_code_that_does_not_parse_by_itself_contradicts_nothing(code: str) -> None:
    assert not Evidence(code.split("\n")).contradicts(AnswerFinding("bare-except", 1, code[:3], None))


def test_a_rule_of_another_catalogue_is_never_contradicted() -> None:
    assert not Evidence(["x = 1"]).contradicts(AnswerFinding("someone-elses-rule", 1, "x", None))


@pytest.mark.parametrize(
    ("rule", "at", "fix", "kept"),
    [
        ("none-comparison", "x == None", "x is None", True),
        ("none-comparison", "x != None", "x is not None", True),
        ("none-comparison", "x != None", "x is None", False),
        ("none-comparison", "None == f(x)", "None is f(x)", True),
        ("none-comparison", "x == None", "y is None", False),
        ("bool-comparison", "x == True", "x", True),
        ("bool-comparison", "x == False", "not x", True),
        ("bool-comparison", "x == False", "x", False),
        ("bool-comparison", "x != True", "not x", True),
        ("bool-comparison", "x != False", "x", True),
        ("bool-comparison", "True == x.y", "x.y", True),
        ("bool-comparison", "x == True", "x is True", True),
        ("bool-comparison", "count(x == True", "count(x", False),
        ("wrong-comparison", "x == 1", "x != 1", True),
        ("none-comparison", "x == None", None, True),
    ],
)
def test_the_fix_of_a_comparison_to_a_constant_asks_the_same(rule: str, at: str, fix: str | None, kept: bool) -> None:
    assert keeps_meaning(AnswerFinding(rule, 1, at, fix)) is kept


def test_no_truth_is_contradicted(tmp_path: Path) -> None:
    """What ruff reports of real code, and what is planted in it."""
    catalogue = load_catalogue()
    files = sorted(Path(random.__file__).parent.glob("*.py"))[::8]
    labels = hygiene_labels(files, catalogue)
    rng = random.Random(3)
    rules = set()
    for file in files:
        for unit in cut_units(file.read_text(encoding="utf-8")):
            natural = natural_example("stdlib", file.name, unit, labels.get(file, []))
            drawn = [planted_example(natural, origin, rng) for origin in ("injected", "hygiene")]
            for example in [natural, *filter(None, drawn)]:
                # A planted wrong name may be the first use of a variable that was unused.
                truths = (
                    example.findings
                    if example.planted is None
                    else [f for f in example.findings if f.rule == example.planted]
                )
                for truth in truths:
                    assert not Evidence(example.unit.texts).contradicts(truth), (truth, example.unit.code)
                    whole = truth.at.strip().count("==") + truth.at.count("!=") == 1
                    assert keeps_meaning(truth) or not whole, truth
                    rules.add(truth.rule)
    assert rules >= set(catalogue.ids) - {"silent-except", "lambda-assignment"}, "the sample holds nearly every rule"
