import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.config.test_document import parse
from tltasks.config.document import MAX_DEPTH, dotted
from tltasks.config.yaml_reader import MAX_BYTES, MAX_VALUES, dump, read_text
from tltasks.errors import RecipeError


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return str(caught.value)


def value(text: str) -> Any:
    return parse(f"key: {text}\n").value["key"]


# ------------------------------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-4", 5e-4),
        ("5E-4", 5e-4),
        ("1e3", 1000.0),
        ("2.", 2.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("+7", 7),
        ("017", 17),  # no octal
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("On", "On"),
        ("y", "y"),
        ("0o17", "0o17"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("1e", "1e"),
        ("nan", "nan"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("train[:95%]", "train[:95%]"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_keys_that_look_like_truth_are_text() -> None:
    assert parse("on: 1\nno: 2\ny: 3\n").value == {"on": 1, "no": 2, "y": 3}


# ------------------------------------------------------------------------------------------- places


def test_places_of_keys_and_items() -> None:
    tree = parse("a: 1\nb:\n  - c: 2\n    d: {e: 3}\n  - f\n")
    at = {dotted(keys): str(location) for keys, location in tree.locations.items()}
    assert at == {
        "": "r.yaml:1:1",
        "a": "r.yaml:1:1",
        "b": "r.yaml:2:1",
        "b[0]": "r.yaml:3:5",
        "b[0].c": "r.yaml:3:5",
        "b[0].d": "r.yaml:4:5",
        "b[0].d.e": "r.yaml:4:9",
        "b[1]": "r.yaml:5:5",
    }
    assert str(tree.location(("b", 0, "zzz"))) == "r.yaml:3:5"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, newline: str, mark: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes((mark + newline.join(["a: 1", "b: zwölf", ""])).encode())
    tree = parse(read_text(path))
    assert tree.value == {"a": 1, "b": "zwölf"}
    assert str(tree.location(("b",))) == "r.yaml:2:1"


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("content", ["a: 1\nb: zwölf\n".encode("latin-1"), "a: 1\n".encode("utf-16")])
def test_other_encodings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    place = "2:6" if b"zw" in content else "1:1"
    with pytest.raises(RecipeError, match=rf"r\.yaml:{place}  not UTF-8 text \(byte 0x(f6|ff)\)"):
        read_text(path)


def test_largest_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="has 1,000,001 bytes; a recipe has at most 1,000,000"):
        read_text(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "vit_cifar10.yaml").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    for name, expected in {
        "vit_cifar1O.yaml": "not found; did you mean `vit_cifar10.yaml`?",
        "vit_cifar10": "not found; did you mean `vit_cifar10.yaml`?",
        "zzz": "not found.",
        "nowhere/r.yaml": "not found; there is no folder",
        "": "is a folder; name a recipe file in it, or learn from it: `tltasks run --data ",
        "run": f"is a results folder; its recipe is {tmp_path / 'run' / 'recipe.yaml'}.",
        "pipe": "is not a regular file.",
        "x" * 5000: "not found.",
    }.items():
        with pytest.raises(RecipeError) as caught:
            read_text(tmp_path / name)
        assert f": {expected}" in str(caught.value)


# ------------------------------------------------------------------------------------------- safety

NOT_PLAIN = {
    "python object": ("a: !!python/object/apply:os.system [ls]", "1:4", "the tag `!!python/object/apply:os.system`"),
    "python name": ("a: !!python/name:os.system x", "1:4", "the tag"),
    "own tag": ("b: 1\na: !secret x", "2:4", "the tag `!secret`"),
    "standard tag": ("a: !!int '3'", "1:4", "the tag `!!int`"),
    "tag of nothing in particular": ("a: ! x", "1:4", "the tag `!`"),
    "tag of a key": ("!!str a: x", "1:1", "the tag"),
    "tag of a mapping": ("!!omap\na: x", "1:1", "the tag"),
    "two documents": ("a: 1\n---\nb: 2\n", "2:1", "a second document"),
    "itself": ("a: &x [*x]", "1:4", "contains itself"),
    "itself, deeper": ("a: &x {b: [1, {c: *x}]}", "1:4", "contains itself"),
    "unknown alias": ("a: *x", "1:4", "the alias `*x` stands for nothing"),
    "unknown escape": ('a: "C:\\q"', "1:8", "`\\q` within double quotes; write paths with `/`, or in single quotes"),
    "escape beyond Unicode": ('a: "\\U00110000"', "1:1", "cannot be read as YAML"),
    "half a character": ('b: 1\na: "\\uD800"', "2:4", "the character U+D800 is not allowed"),
    "null byte by escape": ('a: "\\0"', "1:4", "the character U+0000 is not allowed"),
    "null byte in a key": ('"a\\0": 1', "1:1", "the character U+0000 is not allowed"),
    "control character": ("a: 1\nb: x\x07y", "2:5", "the character U+0007 is not allowed"),
    "tab": ("a:\n\tb: 1", "2:1", "a tab; indent with spaces"),
    "indentation": ("a:\n  b: 1\n c: 2", "3:2", "does not line up"),
    "list and mapping": ("a:\n  - 1\n  b: 2", "3:3", "does not line up with the list"),
    "colon": ("a: b: c", "1:5", "a second `: `"),
    "open list": ("a: [1, 2\nb: 3", "2:2", "the list `[`"),
    "open mapping": ("a: {b: 1\n", "2:1", "the mapping `{` begun on line 1"),
    "open quotes": ("a: 'b\n", "2:1", "the quotes opened on line 1 are not closed"),
    "key alone": ("a: 1\nb\nc: 2", "3:1", "a key without `: ` (on line 2)"),
    "reserved": ("a: @x", "1:4", "text cannot begin with `@`"),
    "other version": ("%YAML 3.0\n---\na: 1", "1:1", "cannot be read as YAML"),
    "text": ("only text", "1:1", "expected a mapping of keys such as `task: …`, found the text 'only text'"),
    "list": ("- a\n- b", "1:1", "expected a mapping of keys such as `task: …`, found a list"),
    "digits": (f"a: {'9' * 101}", "1:4", "a number of 101 digits"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain_is_refused_at_its_place(name: str) -> None:
    text, place, expected = NOT_PLAIN[name]
    message = refused(text)
    assert message.startswith(f"r.yaml:{place}  {expected}"), message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null", "~"])
def test_empty(text: str) -> None:
    assert refused(text) == "r.yaml: is empty; a recipe is a mapping of keys such as `task` and `stages`."


def test_depth() -> None:
    at_most = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse(at_most).value["a"]
    for deep in ("[" * MAX_DEPTH + "]" * MAX_DEPTH, "[" * 50_000, "{a: " * 50_000):
        assert f"nested more than {MAX_DEPTH} levels deep" in refused(f"a: {deep}")


def test_many_values() -> None:
    assert "too large" in refused("a: [" + "1," * (MAX_VALUES + 1) + "]")


def test_aliases_are_copies() -> None:
    tree = parse("a: &x {k: [1]}\nb: *x\n").value
    assert tree == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert tree["a"]["k"] is not tree["b"]["k"]


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    assert "aliases that expand to more" in refused("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "the key `a` is already there on line 1; keep one"),
        ("x: &x {c: 1}\na:\n  <<: *x\n  b: 2\n", "3:3", "merge keys (`<<`) are not allowed; write the keys out"),
        ("a: 1\n5: x\n", "2:1", "the key `5` is not text; put it in quotes"),
        ("a: 1\nnull: x\n", "2:1", "the key `null` is not text; put it in quotes"),
        ("a: 1\ntrue: x\n", "2:1", "the key `true` is not text; put it in quotes"),
        ("a: 1\n? [b, c]\n: x\n", "2:3", "a key that is a list or mapping; keys are text"),
        ('"x\\ny": 1\n"x\\ny": 2\n', "2:1", "the key `x y` is already there on line 1; keep one"),
    ],
)
def test_mistakes_of_writing_leave_the_rest_readable(text: str, place: str, expected: str) -> None:
    tree = parse(text)
    assert [(str(p.location), p.text) for p in tree.problems] == [(f"r.yaml:{place}", expected)]
    assert tree.value


# ------------------------------------------------------------------------------------------ writing

AWKWARD = [
    *("", " ", "no", "off", "yes", "~", "null", "true", "1", "017", "0o17", "1e3", "5e-4", "1_000", ".inf", ".5"),
    *("12:30", "2024-01-02"),
    *("<<", "=", "- a", "a: b", "a #b", "#", "'", '"', "@x", "%x", "!x", "&x", "*x", "|", ">", "{", "["),
    *("two\nlines", "\n", "trailing \n", "tab\there", "zwölf", "日本語", "😀", "\u2028", "\x85", "\ufeff", "a\\b"),
    *("x" * 300, "word " * 60, "many   spaces " * 20, True, False, None, 0, -1, 10**50, 0.0, 5e-4, 1e300),
    *(5e-324, math.inf, -math.inf),
]  # fmt: skip


@pytest.mark.parametrize("item", AWKWARD, ids=range(len(AWKWARD)))
def test_what_is_written_is_read_back(item: Any) -> None:
    tree = {"plain": item, "list": [item, [item]], "mapping": {"k": item}}
    if isinstance(item, str) and item != "<<":
        tree[item] = 1
    text = dump(tree)
    found = parse(text)
    assert found.value == tree
    assert type(found.value["plain"]) is type(item)
    if not isinstance(item, float):  # of which YAML 1.1 wants a dot
        assert yaml.safe_load(text)["plain"] == item


def test_random_trees_are_read_back() -> None:
    rng = random.Random(0)
    items = [item for item in AWKWARD if item != "<<"]

    def tree(depth: int) -> Any:
        kind = rng.random()
        if depth == 0 or kind < 0.4:
            return rng.choice(items)
        if kind < 0.7:
            return [tree(depth - 1) for _ in range(rng.randrange(4))]
        keys = [str(rng.choice(items)) for _ in range(rng.randrange(4))]
        return {key: tree(depth - 1) for key in keys}

    for _ in range(100):
        wanted = {"root": tree(5)}
        assert parse(dump(wanted)).value == wanted


def test_what_is_written_has_no_aliases() -> None:
    shared = [1, 2]
    assert "*" not in dump({"a": shared, "b": shared})
