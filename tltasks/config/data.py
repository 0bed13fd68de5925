"""The `data` section, for every task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tltasks.config.section import Conflict, FileName, HeldOut, Name, Named, PositiveFloat, PositiveInt, Section, Share

BUILDERS = ("imagefolder", "audiofolder", "csv", "json", "parquet", "text", "webdataset")
"""Names of data sets that are read from local files by the datasets library."""
Files = str | list[str] | dict[str, str | list[str]] | None


class HeldOutRows(Section):
    """Rows held out of train that are alike in nothing but what is to be learnt."""

    share: HeldOut | None = None
    """Share of the groups, or of the rows in their order, that is held out."""
    group: Name | None = None
    """Column whose rows of one value stay together (patient, speaker, document): the share is one of groups."""
    ordered_by: Name | None = None
    """Column, a date or a number, whose last rows are held out."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Of `folds` parts the one that is held out, the first being 0. Experiments set it: `folds: 5`."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Parts that the rows are dealt into, each label in proportion, instead of a share."""

    @property
    def column(self) -> str | None:
        return self.group or self.ordered_by

    @property
    def size(self) -> float:
        """The share of rows that are held out."""
        return self.share or 1 / (self.folds or 2)

    @property
    def fault(self) -> str | None:
        """Why these keys do not go together."""
        if self.folds is None and self.fold is None:
            both = (self.group is None) == (self.ordered_by is None)
            ask = "takes `group` or `ordered_by`; a share alone is a number, such as `test: 0.2`"
            return ask if both else "needs a `share`" if self.share is None else None
        if self.folds is None or self.fold is None or self.fold >= self.folds:
            return f"`fold` is one of `folds`, from 0 to {(self.folds or 5) - 1}"
        return "`folds` takes the place of `share` and `ordered_by`" if self.share or self.ordered_by else None


class Splits(Section):
    """Which rows are trained on, which choose, and which are reported: splits of the source, or shares held out."""

    train: str | None = "train"
    """Split to train on, or several as in `train+extra`. Slices such as `train[:1000]` take rows as they lie:
    where rows are sorted by class they lack classes, and a share held out (`test: 0.2`) does not."""
    validation: str | HeldOut | HeldOutRows | None = None
    """Split that chooses the best weights; or a share held out of `train` (stratified by label, drawn with `seed`); or
    one by a column, such as `{share: 0.1, group: speaker}`."""
    test: str | HeldOut | HeldOutRows | None = "test"
    """Split of the headline; or a share held out of `train`, by a column or not."""
    set_aside: HeldOut | HeldOutRows | None = None
    """Share held out of `train` that nothing reads. Searches have the recipe's share `test` here: its rows choose no
    setting."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed that shares held out are drawn with. Unset: the recipe's; in an experiment the first of its `seeds`, for all
    trials."""

    def conflicts(self) -> Iterator[Conflict]:
        for name, rows in self.held_by.items():
            if text := rows.fault:
                yield Conflict(text, (name if self.set_aside is None else "set_aside",))
        if self.set_aside is not None and self.test is not None:
            yield Conflict("rows that are set aside stand in the place of `test`, which is to be null", ("set_aside",))

    @property
    def shares(self) -> dict[str, float]:
        """Shares held out of `train`, by split."""
        given = self._held
        held = {name: rows.size if isinstance(rows, HeldOutRows) else rows for name, rows in given.items()}
        return {name: share for name, share in held.items() if isinstance(share, float)}

    @property
    def held_by(self) -> dict[str, HeldOutRows]:
        """Shares held out of `train` by a column, by split."""
        return {name: rows for name, rows in self._held.items() if isinstance(rows, HeldOutRows)}

    @property
    def _held(self) -> dict[str, str | float | HeldOutRows | None]:
        return {"validation": self.validation, "test": self.test if self.set_aside is None else self.set_aside}


class Source(Named):
    """Origin of examples."""

    name: Name | None = None
    """Hub id, local folder or table, or a builder: imagefolder, audiofolder, csv, json, parquet, text."""
    config: str | None = None
    """Configuration of the Hub data set, or folder of a local one."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    dir: str | None = None
    """Folder for a builder, relative to the recipe; for a Hub id, folder of the repository."""
    files: Files = None
    """Files for a builder (a glob, a list, or one of these for each split), relative to the recipe; for a Hub id, files
    of the repository."""


class ExtraTest(Source):
    """Another test set, e.g. of another domain. Keys that are not set are those of `data`."""

    split: str | None = None
    """Split to evaluate on. Unset: the only one, or else `data.splits.test`."""


class ExtraTrain(Source):
    """Further rows to train on. Keys that are not set are those of `data`."""

    split: str | None = None
    """Split to train on. Unset: the only one, or else `data.splits.train`."""
    weight: PositiveFloat = 1.0
    """How often each of its rows is met, where one of `data` itself is met once."""


class Columns(Section):
    """Names of a data set's columns, by what a task takes each for."""

    def conflicts(self) -> Iterator[Conflict]:
        named: dict[str, str] = {}
        for key, column in self:
            for name in [column] if isinstance(column, str) else column or ():
                if (other := named.setdefault(name, key)) != key:
                    given, other = (key, other) if key in self.model_fields_set else (other, key)
                    yield Conflict(f"column `{name}` is taken as `{other}` already; name another", (given,))


class LanguageColumns(Columns):
    language: str | None = None
    """Language of each row: `es`, `spanish`, or a code of the model's own. Scores are also given by language, and
    models that are told one (Whisper, mBART, …) are told each row's; `model.language` is that of rows without."""


class UnlabelledColumns(Columns):
    label: str | None = None
    """Names of classes (speakers, intents), which nothing is trained on: they judge features by their neighbours."""


class Data(Source):
    name: Name
    """Hub id, local folder or table, or a builder: imagefolder, audiofolder, csv, json, parquet, text."""
    splits: Splits = Splits()
    extra_test: dict[FileName, ExtraTest] = {}
    """Further test sets by name, scored beside `test`."""
    extra_train: dict[FileName, ExtraTrain] = {}
    """Further sources to train on by name. An epoch has as many rows as all have together, those of each in proportion
    to their number and its `weight`, drawn anew with (seed, epoch); a probe takes every row once."""
    shots: PositiveInt | None = None
    """Few-shot: training examples, drawn with `seed` from what is not held out; of each class where rows have one."""
    leaks: Literal["note", "drop", "error", "off"] = "note"
    """Rows of test and validation sets with near-duplicates among those trained on: counted, and the score also given
    without them (note); their near-duplicates left out of train (drop); refused (error); not looked for (off)."""
    max_bad_share: Share = 0.01
    """Share of a split's examples that may be unreadable; they are named, counted and left out. More is an error."""
    streaming: bool = False
    """Read the training split from its shards (parquet, JSON lines or webdataset; on the Hub or here) as training
    comes to them, rather than store it: memory and disk hold `shuffle_buffer` rows. docs/data.md says what it asks."""
    shuffle_buffer: PositiveInt = 10_000
    """streaming: rows that are shuffled together, as they lie in the shards, whose order is drawn for each epoch."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Loader processes per device. Unset: none on a CPU, up to 8 beside an accelerator."""

    def conflicts(self) -> Iterator[Conflict]:
        splits = self.splits
        shares = splits.shares
        if sum(shares.values()) >= 1:
            yield Conflict(f"shares of {sum(shares.values()):g} in all leave nothing to train on", ("splits",))
        if shares and splits.train is None:
            yield Conflict("a share is held out of train, so train needs a split", ("splits", "train"))
        if splits.validation is None and splits.test is None and not self.extra_test:
            text = "nothing to evaluate on: set `test`, `validation` or `extra_test`"
            yield Conflict(text, ("splits",))
        if self.name in BUILDERS and not self.dir and not self.files:
            yield Conflict(f"the builder `{self.name}` needs `dir` or `files`", ("name",))
        for name in sorted(self.extra_test.keys() & {"train", "validation", "test"}):
            yield Conflict(f"`{name}` is the name of a split; choose another", ("extra_test", name))
        if self.streaming:
            yield from self._of_streaming()
        elif self.name == "webdataset":
            yield Conflict("`webdataset` is read with `streaming: true`", ("name",))
        elif "shuffle_buffer" in self.model_fields_set and self.shuffle_buffer != 10_000:
            yield Conflict("`shuffle_buffer` is a key of `streaming: true`", ("shuffle_buffer",))
        if self.extra_train and splits.train is None:
            yield Conflict("further rows to train on need a split of `data` itself, too", ("splits", "train"))

    def _of_streaming(self) -> Iterator[Conflict]:
        """Keys that would need all rows at once."""
        columns, splits = getattr(self, "columns", None), self.splits
        whole = "reads its rows as they come; "
        if splits.shares:
            yield Conflict(f"`streaming` {whole}no share of them can be held out: name splits", ("splits",))
        if splits.train is None or re.search(r"[\[+]", splits.train):
            yield Conflict(f"`streaming` {whole}it takes one whole split", ("splits", "train"))
        if splits.train in (splits.validation, splits.test):
            yield Conflict(f"`streaming` {whole}they are not scored: name other splits", ("splits",))
        keys = {"shots": self.shots, "extra_train": self.extra_train, "relabel": getattr(self, "relabel", None)}
        keys |= {"leaks": self.leaks in {"drop", "error"}, "multi_label": getattr(self, "multi_label", None) is True}
        keys["label_delimiter"] = getattr(self, "label_delimiter", None)
        for key in (key for key, value in keys.items() if value):
            yield Conflict(f"`{key}` needs all training rows at once; leave it out, or `streaming`", (key,))
        if getattr(columns, "language", None) or isinstance(getattr(columns, "label", None), list):
            yield Conflict("`streaming` takes no column of languages and one column of labels", ("columns",))

    def source_of(self, extra: ExtraTest | ExtraTrain) -> Source:
        """Source of further rows: what it does not say is said here."""
        own = {key: value for key in Source.model_fields if (value := getattr(extra, key)) is not None}
        elsewhere = {"dir", "files", "config", "revision"} if own.keys() & {"name", "dir", "files"} else set()
        return self.model_copy(update={**dict.fromkeys(elsewhere), **own})

    @property
    def source_weights(self) -> list[float]:
        """Weights of what is trained on: the data's own rows, and those of each further source."""
        return [1.0, *(extra.weight for extra in self.extra_train.values())]

    def evaluated_on(self, split: str) -> tuple[Source, str | None]:
        """Source of a set of examples and its split there; None for a share held out of another split."""
        extra = self.extra_test.get(split)
        spec = (extra.split or self.splits.test) if extra else getattr(self.splits, split)
        return self.source_of(extra) if extra else self, spec if isinstance(spec, str) else None


LabelColumns = Name | Annotated[list[Name], Field(min_length=2)]
"""A column of classes, or a column of 0 and 1 for each class."""


class ClassData(Data):
    """Data whose rows have a class each, or any number of classes."""

    multi_label: Literal["auto"] | bool = "auto"
    """Rows have any number of classes, none included, and each class is told by itself. auto: where the column of
    labels holds lists, or there is one of 0 and 1 for each class."""
    label_delimiter: Name | None = None
    """What stands between the classes of a row, as in `cat;dog`. Unset: with `multi_label: true` the one of `;`, `|`
    and `,` that there is."""
    class_names: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of integer labels 0, 1, …, where the data set has none."""
    relabel: Name | None = None
    """Table of the columns `path` and `label`, relative to the recipe: rows whose labels are others than the data say,
    such as an experiment's suspected_labels.csv after it was gone through."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        by_column = isinstance(getattr(getattr(self, "columns", None), "label", None), list)
        if self.multi_label is False and (by_column or self.label_delimiter):
            yield Conflict("`multi_label: false` has one class for each row, and several are named", ("multi_label",))
        if by_column and self.label_delimiter:
            yield Conflict("`label_delimiter` is of one column of labels, and there is one for each class")
        if self.relabel is not None and (self.multi_label is True or by_column or self.label_delimiter):
            yield Conflict("`relabel` is of rows with a class each; correct the table itself", ("relabel",))


class Corruptions(Section):
    """The test set made worse, to see what the model bears."""

    rows: PositiveInt = 1000
    """Examples of the test set, drawn with `seed`, that are corrupted."""

    kinds: Sequence[str]
    level: ClassVar[str]
    """What the levels are."""

    @property
    def levels(self) -> list[float]:
        """The levels of each kind, the mildest first."""
        raise NotImplementedError

    @property
    def chosen(self) -> list[tuple[str, float]]:
        """Each kind at each level, the mildest first."""
        return [(kind, level) for kind in self.kinds for level in self.levels]
