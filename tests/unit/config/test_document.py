"""Trees of keys with their places, and other values put into them."""

import doctest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tltasks.config.document
import tltasks.config.yaml_reader
from tltasks.config.document import MAX_DEPTH, Document, Origin, dotted, from_python, list_mistakes
from tltasks.config.loading import Overrides, override
from tltasks.errors import RecipeError


def parse(text: str, overrides: Overrides = ()) -> Document:
    """What a text holds, as if it were the file r.yaml here."""
    return override(tltasks.config.yaml_reader.parse(text, Origin("r.yaml", Path())), overrides)


def test_doctests() -> None:
    result = doctest.testmod(tltasks.config.document)
    assert result.attempted >= 2
    assert result.failed == 0


# ---------------------------------------------------------------------------------------- overrides

TREE = "a: 1\nlist:\n  - {b: 2, keep: 3}\n  - x\nempty: null\n"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=2", {"a": 2}),
        ("a=", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        (" a =2", {"a": 2}),
        ("a=[1, {b: no}]", {"a": [1, {"b": "no"}]}),
        ("a=5e-4", {"a": 5e-4}),
        ("a='5'", {"a": "5"}),
        ("list.0.b=9", {"list": [{"b": 9, "keep": 3}, "x"]}),
        ("list[0].b=9", {"list": [{"b": 9, "keep": 3}, "x"]}),
        ("list.1=y", {"list": [{"b": 2, "keep": 3}, "y"]}),
        ("list=[]", {"list": []}),
        ("new.deep.er=1", {"new": {"deep": {"er": 1}}}),
        ("empty.deep=1", {"empty": {"deep": 1}}),
        ("list.0.new.deep=1", {"list": [{"b": 2, "keep": 3, "new": {"deep": 1}}, "x"]}),
    ],
)
def test_overrides(override: str, expected: dict[str, Any]) -> None:
    before = parse(TREE).value
    assert parse(TREE, [override]).value == before | expected


def test_places_of_overrides() -> None:
    tree = parse(TREE, ["list.0={b: {c: 1}}", "new.deep=1", "a=0", "a=2"])
    shown = {dotted(keys): str(location) for keys, location in tree.locations.items() if str(location)[:5] == "--set"}
    first = "--set list.0={b: {c: 1}}"
    new = "--set new.deep=1"
    assert shown == {"list[0]": first, "list[0].b": first, "list[0].b.c": first, "new": new, "new.deep": new} | {
        "a": "--set a=2"
    }
    assert str(tree.location(("list", 1))) == "r.yaml:4:5"
    assert ("list", 0, "keep") not in tree.locations


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a", "write it as KEY=VALUE, e.g. `--set stages.0.epochs=1`."),
        ("=1", "write it as KEY=VALUE"),
        ("", "write it as KEY=VALUE"),
        ("a..b=1", "write it as KEY=VALUE"),
        ("a b=1", "write it as KEY=VALUE"),
        ("list[x]=1", "write it as KEY=VALUE"),
        ("list.x=1", "list is a list; name an item by its number, as in list[0]."),
        ("list.-1=1", "list is a list; name an item by its number, as in list[0]."),
        ("list.²=1", "list is a list; name an item by its number, as in list[0]."),
        (f"list.{'1' * 5000}=1", "list is a list; name an item by its number, as in list[0]."),
        ("list.2=1", "list has 2 items, 0 to 1; there is no 2."),
        ("a.b=1", "a is the number 1 and has no keys; set it as a whole."),
        ("list.1.b=1", "list[1] is the text 'x' and has no keys; set it as a whole."),
        (f"{'x.' * MAX_DEPTH}x=1", f"nested more than {MAX_DEPTH} levels deep."),
        ("a=[1", " the list `[`"),
        ("a=!!python/name:os.system", " the tag `!!python/name:os.system`"),
        ("a=\x07", " the character U+0007"),
        ("a=b: c: d", " a second `: `"),
    ],
)
def test_overrides_that_cannot_be_followed(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(TREE, [override])
    message = str(caught.value)
    assert message.startswith("--set ")
    assert f"{expected}" in message
    assert len(message) < 300


def test_override_with_a_duplicate_key() -> None:
    (problem,) = parse(TREE, ["a={b: 1, b: 2}"]).problems
    assert str(problem.location) == "--set a={b: 1, b: 2}"
    assert "already there" in problem.text


# ----------------------------------------------------------------------------------------- in Python


def test_values_that_python_sets() -> None:
    before = parse(TREE).value
    found = parse(TREE, {"a": "5e-4", "list[0].b": {"c": (1, Path("x") / "y")}, "new.deep": None})
    assert found.value == before | {
        "a": "5e-4",  # a text, which is not read again
        "list": [{"b": {"c": [1, "x/y"]}, "keep": 3}, "x"],
        "new": {"deep": None},
    }
    assert str(found.location(("list", 0, "b", "c", 1))) == "overrides['list[0].b']"
    assert str(found.location(("list", 1))) == "r.yaml:4:5"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"list.2": 1}, "overrides['list.2']: list has 2 items, 0 to 1; there is no 2."),
        ({"a b": 1}, "overrides['a b']: write keys as `stages.0.epochs`."),
        ({"": 1}, "overrides['']: write keys as `stages.0.epochs`."),
        ({"x." * MAX_DEPTH + "x": 1}, "nested more than 32 levels deep."),
    ],
)
def test_values_that_python_cannot_set(overrides: Mapping[str, object], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(TREE, overrides)
    assert expected in str(caught.value)


def test_a_mapping_is_a_document() -> None:
    tree = from_python({"b": [{"c": 1}], 5: "x", "a": Path("p")}, Origin("", Path("here")))
    assert tree.value == {"b": [{"c": 1}], "a": "p"}
    assert [str(p.text) for p in tree.problems] == ["the key `5` is not text"]
    order = sorted(tree.locations, key=lambda keys: tree.locations[keys])
    assert order == [(), ("b",), ("b", 0), ("b", 0, "c"), ("a",)]
    assert tree.location(("a",)).folder == Path("here")


def test_a_mapping_that_contains_itself() -> None:
    tree: dict[str, Any] = {}
    tree["a"] = tree
    with pytest.raises(RecipeError, match="nested more than 32 levels deep"):
        from_python(tree, Origin("", Path()))


def test_below() -> None:
    part = parse(TREE).below(("list", 0))
    assert part.value == {"b": 2, "keep": 3}
    assert {dotted(keys): str(at) for keys, at in part.locations.items()} == {
        "": "r.yaml:3:5",
        "b": "r.yaml:3:6",
        "keep": "r.yaml:3:12",
    }


def test_a_part_without_places_takes_those_that_it_replaces() -> None:
    tree = parse(TREE).replaced("list.0.b", Document(7, {}))
    assert tree.value["list"][0]["b"] == 7
    assert str(tree.location(("list", 0, "b"))) == "r.yaml:3:6"


def test_mistakes_of_a_mapping_are_named_by_their_keys() -> None:
    tree = from_python({"a": 1}, Origin("", Path()))
    text = list_mistakes([tree.issue((), "needs the key `b`"), tree.issue(("a",), "is wrong", ["x"])], "the recipe")
    assert text.splitlines()[1:] == ["needs the key `b`", "a: is wrong", "    allowed: x"]
