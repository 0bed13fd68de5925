"""The house in numbers: the size of tltasks/, the depth of its imports, the length of its functions, the worst places.

    python benchmarks/house.py            # or `make house`
    python benchmarks/house.py --json
    python benchmarks/house.py --fail     # exit status 1 where a limit is exceeded

Read from the source alone, nothing is imported. How the numbers are counted:

- Imports: every `import` in a module counts, inside functions and under TYPE_CHECKING too. A face (`__init__.py`) is no
  step of a chain, but is followed to what it imports when it is imported, and for a name that it hands out to the
  module that the name comes from. Depth is the number of imports in the longest chain (import-linter 2.17: 8).
- Floors: the folders at the top, each on the floor above the highest folder that it imports from. Cycles are looked for
  among the modules and folders of each folder, all that a folder holds counting as one. Upward: an arrow between rooms
  that goes up or sideways in the layers of pyproject.toml.
- A function's length is that of its lines from `def` to its last, docstring included.
- Equal blocks: six or more lines that stand in two files of tasks/*/, without blank lines and imports.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "tltasks"
BLOCK = 6
"""So many equal lines are a block."""
WORST = 5
"""So many of the worst places are named."""
RELATIVE_OPENINGS = ("What ", "Of ", "Where ", "Whether ")


Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Measure:
    """A number of the house, its limit (the most; for a share in percent the least) and the worst places."""

    name: str
    value: int
    limit: int | None = None
    at_least: bool = False
    worst: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Module:
    """A Python file: its dotted name, its path below the package's parent, its text and its syntax tree."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def is_face(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def folder(self) -> str:
        return self.name if self.is_face else self.name.rpartition(".")[0]


class House:
    """The modules of a package, the imports between them, and what is measured on both."""

    def __init__(self, root: Path, layers: list[list[str]] | None = None) -> None:
        self.layers = layers or []
        self.modules: dict[str, Module] = {}
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text(encoding="utf-8")
            self.modules[name] = Module(name, str(file.relative_to(root.parent)), text, ast.parse(text))
        self.package = root.name

    # ------------------------------------------------------------------------------------- imports

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules that each module imports; a face's without those that it hands out lazily."""
        found: dict[str, set[str]] = {}
        for module in self.modules.values():
            found[module.name] = set()
            for node in _import_nodes(module.tree, typing_only=not module.is_face):
                found[module.name].update(self._targets(module, node))
            found[module.name].discard(module.name)
        return found

    def _targets(self, module: Module, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in self.modules)
            return
        source = _source(module, node)
        for alias in node.names if source in self.modules else ():
            if f"{source}.{alias.name}" in self.modules:
                yield f"{source}.{alias.name}"
            else:
                yield source
                if origin := self._handed_out.get((source, alias.name)):
                    yield origin

    @cached_property
    def _handed_out(self) -> dict[tuple[str, str], str]:
        """(face, name) → the module that the face has the name from."""
        found = {}
        for face in filter(lambda module: module.is_face, self.modules.values()):
            for node in _import_nodes(face.tree, typing_only=True):
                if isinstance(node, ast.ImportFrom) and _source(face, node) in self.modules:
                    found.update({(face.name, alias.asname or alias.name): _source(face, node) for alias in node.names})
        return found

    @cached_property
    def cycles(self) -> list[list[str]]:
        """Modules that import each other, in groups."""
        return [sorted(group) for group in _components(self.imports) if len(group) > 1]

    @cached_property
    def longest_chain(self) -> list[str]:
        """The longest way down from a module by imports, faces left out. A cycle counts as one step."""
        return _longest(self.imports, skip={name for name, module in self.modules.items() if module.is_face})

    def siblings(self, folder: str) -> dict[str, set[str]]:
        """Imports between the modules and folders that lie in a folder, all that a folder holds taken as one."""
        found: dict[str, set[str]] = {}
        for name, targets in self.imports.items():
            if name.startswith(f"{folder}."):
                here = _child(folder, name)
                there = {_child(folder, target) for target in targets if target.startswith(f"{folder}.")}
                found[here] = found.get(here, set()) | there - {here}
        return found

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """The folders at the top, and those that each imports from."""
        among = self.siblings(self.package)
        folders = {name for name in among if any(module.startswith(f"{name}.") for module in self.modules)}
        return {name: among[name] & folders for name in folders}

    def upward(self) -> list[str]:
        """Imports between rooms that do not go down in the layers."""
        floors = {room: floor for floor, rooms in enumerate(reversed(self.layers)) for room in rooms}
        wrong = []
        for name, targets in self.imports.items():
            for target in targets:
                here, there = (part.split(".")[1] if "." in part else "" for part in (name, target))
                if here != there and here in floors and there in floors and floors[there] >= floors[here]:
                    wrong.append(f"{name} → {target}")
        return wrong

    # --------------------------------------------------------------------------------------- lines

    def functions(self) -> list[tuple[int, str]]:
        """(lines, place) of each function, the longest first."""
        found = [
            (_length(node), f"{module.path}:{node.lineno} {node.name}")
            for module, node in self._nodes()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        return sorted(found, reverse=True)

    def any_annotations(self) -> list[tuple[int, str]]:
        """(uses of `Any`, its import among them, path) of each module with one, the most first."""
        counts: dict[str, int] = defaultdict(int)
        for module, node in self._nodes():
            match node:
                case ast.Name(id="Any") | ast.Attribute(attr="Any") | ast.alias(name="Any"):
                    counts[module.path] += 1
        return sorted(((count, path) for path, count in counts.items()), reverse=True)

    def equal_blocks(self) -> list[str]:
        """Places where two adapters share a block of lines."""
        adapters = [name for name in self.modules if name.startswith(f"{self.package}.tasks.") and name.count(".") == 3]
        pairs = combinations((self.modules[name] for name in sorted(adapters)), 2)
        return [place for left, right in pairs for place in _shared(left, right)]

    def docstrings(self) -> list[tuple[str, str]]:
        """(place, docstring) of modules, classes and functions."""
        return [
            (f"{module.path}:{getattr(node, 'lineno', 1)}", text)
            for module, node in self._nodes()
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and (text := ast.get_docstring(node))
        ]

    def public_functions(self) -> list[tuple[bool, str]]:
        """(annotated, place) of each function whose name is public."""
        return [
            (_annotated(node), f"{module.path}:{node.lineno} {node.name}")
            for module, node in self._nodes()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        ]

    def _nodes(self) -> Iterator[tuple[Module, ast.AST]]:
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                yield module, node

    # -------------------------------------------------------------------------------------- measures

    def measures(self) -> list[Measure]:
        """All numbers, each with its limit."""
        return [*self._layout(), *self._size(), *self._text()]

    def _layout(self) -> Iterator[Measure]:
        top = [module.name for module in self.modules.values() if module.folder == self.package]
        yield Measure("modules at the top", len(top), 4, worst=tuple(top))
        yield Measure("folders at the top", len(self.rooms), 15, worst=tuple(sorted(self.rooms)))
        yield Measure("import depth", max(len(self.longest_chain) - 1, 0), 11, worst=(" → ".join(self.longest_chain),))
        yield Measure("modules in cycles", sum(map(len, self.cycles)), 0, worst=tuple(map(", ".join, self.cycles)))
        floors = _longest(self.rooms, skip=set())
        yield Measure("floors of folders", len(floors), 8, worst=(" → ".join(floors),))
        groups = [
            group for face in self.modules.values() if face.is_face for group in _components(self.siblings(face.name))
        ]
        circles = [", ".join(sorted(group)) for group in groups if len(group) > 1]
        yield Measure("folders with cycles", len(circles), 0, worst=tuple(circles))
        upward = self.upward()
        yield Measure("upward arrows", len(upward), 0, worst=tuple(upward[:WORST]))

    def _size(self) -> Iterator[Measure]:
        lines = sorted(((module.text.count("\n"), module.path) for module in self.modules.values()), reverse=True)
        yield Measure("lines", sum(count for count, _ in lines), 19_500, worst=_ranked(lines))
        functions = self.functions()
        lengths = [length for length, _ in functions]
        yield Measure("function length, median", round(statistics.median(lengths)) if lengths else 0)
        yield Measure("function length, p90", _percentile(lengths, 0.9), 22)
        long = [(length, place) for length, place in functions if length > 60]
        yield Measure("function length, max", max(lengths, default=0), 60, worst=_ranked(long))

    def _text(self) -> Iterator[Measure]:
        uses = self.any_annotations()
        yield Measure("uses of Any", sum(count for count, _ in uses), 150, worst=_ranked(uses))
        blocks = self.equal_blocks()
        yield Measure("equal blocks in two adapters", len(blocks), 0, worst=tuple(blocks[:WORST]))
        relative = [place for place, text in self.docstrings() if text.startswith(RELATIVE_OPENINGS)]
        yield Measure("docstrings with What/Of/Where/Whether", len(relative), 0, worst=tuple(relative[:WORST]))
        public = self.public_functions()
        bare = [place for annotated, place in public if not annotated]
        share = 100 * (len(public) - len(bare)) // len(public) if public else 100
        yield Measure("public functions annotated, %", share, 100, at_least=True, worst=tuple(bare[:WORST]))


# ------------------------------------------------------------------------------------------- syntax


def _import_nodes(tree: ast.Module, *, typing_only: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any depth; those under `if TYPE_CHECKING` only with `typing_only`."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not typing_only:
            stack.extend(node.orelse)
        else:
            stack.extend(ast.iter_child_nodes(node))


def _source(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    base = module.folder.split(".")
    return ".".join([*base[: len(base) - node.level + 1], *([node.module] if node.module else [])])


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _annotated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [one for one in (node.args.vararg, node.args.kwarg) if one]
    named = [one for place, one in enumerate(arguments) if not (place == 0 and one.arg in {"self", "cls"})]
    return node.returns is not None and all(one.annotation for one in named)


def _shared(left: Module, right: Module) -> Iterator[str]:
    """Places of the longest blocks that two modules share."""
    ours, theirs = _plain_lines(left), _plain_lines(right)
    starts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for start in range(len(theirs) - BLOCK + 1):
        starts[tuple(text for _, text in theirs[start : start + BLOCK])].append(start)
    seen: set[tuple[int, int]] = set()
    for start in range(len(ours) - BLOCK + 1):
        for other in starts.get(tuple(text for _, text in ours[start : start + BLOCK]), ()):
            if (start, other) not in seen:
                length = 0
                while start + length < len(ours) and other + length < len(theirs) and (
                    ours[start + length][1] == theirs[other + length][1]
                ):  # fmt: skip
                    seen.add((start + length, other + length))
                    length += 1
                yield f"{left.path}:{ours[start][0]} and {right.path}:{theirs[other][0]}, {length} lines"


def _plain_lines(module: Module) -> list[tuple[int, str]]:
    nodes = _import_nodes(module.tree, typing_only=True)
    imported = {line for node in nodes for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    numbered = enumerate(module.text.splitlines(), 1)
    return [(number, line.rstrip()) for number, line in numbered if line.strip() and number not in imported]


# ------------------------------------------------------------------------------------------- graphs


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components, those that are imported before those that import. Source: Tarjan (1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            place = stack.index(node)
            found.append(stack[place:])
            del stack[place:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def _longest(graph: dict[str, set[str]], skip: set[str]) -> list[str]:
    """The longest chain of imports, without the nodes in `skip`."""
    best: dict[str, list[str]] = {}
    for component in _components(graph):
        below = [best[target] for node in component for target in graph.get(node, ()) if target not in component]
        counted = [node for node in component if node not in skip]
        chain = max(below, key=_by_length, default=[])
        chain = [" + ".join(sorted(counted)), *chain] if counted else chain
        best.update(dict.fromkeys(component, chain))
    return max(best.values(), key=_by_length, default=[])


def _child(folder: str, name: str) -> str:
    """The module or folder directly in a folder that a module is, or lies in."""
    return ".".join(name.split(".")[: folder.count(".") + 2])


def _by_length(chain: list[str]) -> tuple[int, list[str]]:
    return len(chain), chain


def _percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def _ranked(counted: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(f"{count} {place}" for count, place in list(counted)[:WORST])


# ---------------------------------------------------------------------------------------------- face


def read_house(repository: Path = REPOSITORY) -> House:
    """The package of a repository, with the layers of its import contract."""
    contracts = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    return House(repository / PACKAGE, [[room.strip() for room in layer.split("|")] for layer in layers])


def main() -> int:
    """Print the numbers; returns 1 with --fail where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--fail", action="store_true", help="exit status 1 where a limit is exceeded")
    options = parser.parse_args()
    measures = read_house().measures()
    if options.json:
        print(json.dumps([asdict(measure) | {"holds": measure.holds} for measure in measures], indent=2))
    else:
        for measure in measures:
            sign = "≥" if measure.at_least else "≤"
            limit = "" if measure.limit is None else f"{sign} {measure.limit:,}"
            print(f"{measure.name:<40}{measure.value:>8,}  {limit:<10}{'' if measure.holds else 'exceeded'}".rstrip())
            for place in () if measure.holds else measure.worst:
                print(f"    {place}")
    return int(options.fail and not all(measure.holds for measure in measures))


if __name__ == "__main__":
    sys.exit(main())
