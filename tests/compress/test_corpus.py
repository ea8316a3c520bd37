"""Where code comes from, what a corpus entry may be, and which split a project belongs to."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.build import corpus_fingerprint
from compress.data.corpus import find_sources, split_of
from compress.errors import RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    project = tmp_path / "shop"
    for name in ("orders.py", "pay/cards.py", "tests/test_orders.py", "pay/vendor/six.py", "notes.txt"):
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    return project


def test_a_folder_is_one_project_without_its_tests_and_vendored_code(folder: Path, tmp_path: Path) -> None:
    sources, projects = find_sources([str(folder)], tmp_path)
    assert [(source.project, source.path) for source in sources] == [("shop", "orders.py"), ("shop", "pay/cards.py")]
    assert [info.project for info in projects] == ["shop"]


def test_a_folder_that_is_named_like_a_file_is_no_source(folder: Path, tmp_path: Path) -> None:
    (folder / "generated.py").mkdir()
    sources, _ = find_sources([str(folder)], tmp_path)
    assert all(source.file.is_file() for source in sources)
    assert corpus_fingerprint(sources)


def test_the_standard_library_is_many_projects(tmp_path: Path) -> None:
    sources, projects = find_sources(["stdlib"], tmp_path)
    owned = Counter(source.project for source in sources)
    assert len(owned) > 100 and owned["asyncio"] > 20 and owned["textwrap"] == 1
    assert not {"test", "site-packages", "idlelib"} & set(owned)
    assert projects[0].licence == "PSF-2.0" and f"{sys.version_info.minor}" in projects[0].source


def test_an_installed_package_is_a_project_with_its_licence(tmp_path: Path) -> None:
    sources, projects = find_sources(["rich"], tmp_path)
    assert {source.project for source in sources} == {"rich"}
    assert "console.py" in {source.path for source in sources}
    assert "MIT" in projects[0].licence


def test_entries_are_joined_and_sorted_whatever_their_order(folder: Path, tmp_path: Path) -> None:
    either = find_sources([str(folder), "rich"], tmp_path)[0]
    assert either == find_sources(["rich", str(folder)], tmp_path)[0]
    assert {source.project for source in either} == {"rich", "shop"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("no_such_package", "'no_such_package' is neither a folder nor an installed package"),
        ("no/such/folder", "'no/such/folder' is neither a folder nor an installed package"),
        ("pypi:requests", r"pin pypi:requests to a version \(pypi:requests==1.2.3\)"),
        ("pypi:requests>=2", "pin pypi:requests>=2 to a version"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"data.corpus: {said}"):
        find_sources([entry], tmp_path)


def test_a_file_instead_of_a_folder_says_to_name_the_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"orders\.py' is a file; name the folder it is in"):
        find_sources([str(folder / "orders.py")], tmp_path)


def test_a_folder_without_python_is_refused_even_beside_one_with(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "readme.md").write_text("# x")
    with pytest.raises(RecipeError, match="prose' has no Python files; name a folder or package with code"):
        find_sources([str(folder), str(tmp_path / "prose")], tmp_path)


def test_a_published_package_that_was_fetched_before_is_read_from_the_cache(tmp_path: Path) -> None:
    fetched = tmp_path / "tiny-1.0"
    (fetched / "tiny").mkdir(parents=True)
    (fetched / "tiny" / "core.py").write_text("x = 1\n")
    (fetched / "tiny-1.0.dist-info").mkdir()
    (fetched / "tiny-1.0.dist-info" / "METADATA").write_text("Name: tiny\nVersion: 1.0\nLicense-Expression: MIT\n")

    sources, projects = find_sources(["pypi:tiny==1.0"], tmp_path)
    assert [(source.project, source.path) for source in sources] == [("tiny", "tiny/core.py")]
    assert (projects[0].source, projects[0].licence) == ("tiny==1.0", "MIT")


def test_the_fingerprint_follows_content_and_names(folder: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        return corpus_fingerprint(find_sources([str(folder)], tmp_path)[0])

    first = fingerprint()
    assert fingerprint() == first
    (folder / "notes.txt").write_text("not code")
    assert fingerprint() == first
    (folder / "orders.py").write_text("x = 2\n")
    changed = fingerprint()
    (folder / "orders.py").rename(folder / "sales.py")
    assert len({first, changed, fingerprint()}) == 3


@given(st.text(max_size=20), st.integers(0, 100))
def test_a_project_in_the_holdout_is_test_whatever_its_hash(project: str, seed: int) -> None:
    assert split_of(project, seed, [project], 0.0, 1.0) == "test"


@given(st.text(max_size=20), st.integers(0, 100), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_test_fraction_never_takes_a_project_out_of_test(
    project: str, seed: int, test: float, more: float
) -> None:
    if split_of(project, seed, [], test, 0.1) == "test":
        assert split_of(project, seed, [], test + more, 0.1) == "test"


def test_splits_are_the_same_on_every_machine() -> None:
    expected = {
        "asyncio": "train",
        "email": "validation",
        "json": "test",
        "logging": "test",
        "xml": "test",
        "textwrap": "test",
        "rich": "train",
        "django": "train",
    }
    assert {project: split_of(project, 11, [], 0.3, 0.2) for project in expected} == expected


def test_fractions_are_those_of_projects() -> None:
    splits = Counter(split_of(f"project-{number}", 11, [], 0.15, 0.05) for number in range(4000))
    assert splits["test"] / 4000 == pytest.approx(0.15, abs=0.02)
    assert splits["validation"] / 4000 == pytest.approx(0.05, abs=0.02)
    assert {split_of("any", 11, [], 1.0, 0.0), split_of("any", 11, [], 0.0, 1.0)} == {"test", "validation"}


def test_a_published_package_that_is_not_wanted_is_not_fetched(folder: Path, tmp_path: Path) -> None:
    corpus = [str(folder), "stdlib", "pypi:no-such-package-17==1.0"]
    sources, projects = find_sources(corpus, tmp_path, wanted=lambda project: project in ("shop", "textwrap"))
    assert {source.project for source in sources} == {"shop", "textwrap"}
    assert [info.project for info in projects] == ["shop", "stdlib"]
