"""Rows that are nearly the same: a short mark of each, by which pairs are found, and a closer look at every pair.

What counts as the same: a picture that was saved anew, resized, or cut by some 5 %; a recording that was saved anew,
made louder, shifted or trimmed; a text with other case, punctuation or spaces, or with a few other words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import ClassVar, Literal

import datasets
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter, uniform_filter1d

from tltasks.data.splits import Columns

Pairs = NDArray[np.int64]
"""Rows that are alike, [pairs, 2]: of those that are known, and of those that are asked about."""
Words = NDArray[np.uint32]
Floats = NDArray[np.float32]
Images = Floats
"""[images, colours, height, width], from 0 to 255."""
Look = NDArray[np.generic]
"""An encoded row as it is compared closely."""
AT_ONCE = 512
"""Rows, or pairs of rows, that are held in memory at once."""
Found = dict[int, int]
"""Rows, each with one that it is like."""


class Likeness(ABC):
    """How rows of one kind are told to be nearly the same."""

    kind: ClassVar[Literal["image", "audio", "texts"]]
    columns: tuple[str, ...]
    """What is read of an encoded row to look at it closely."""
    show: Callable[[Columns], bytes]
    """A row, which comes in the first place, as a report shows its kind."""

    @abstractmethod
    def mark(self, columns: Columns) -> list[bytes]:
        """A short mark of each encoded row, such that marks of rows that are alike differ little."""

    @abstractmethod
    def pairs(self, known: Sequence[bytes], asked: Sequence[bytes], most: int) -> Pairs:
        """Rows that may be alike by their marks: of each that is asked about, so many of the known at most."""

    @abstractmethod
    def look(self, columns: Columns) -> list[Look]:
        """Encoded rows as they are compared closely."""

    @abstractmethod
    def confirm(self, known: list[Look], asked: list[Look]) -> NDArray[np.bool_]:
        """True for each pair of rows that are alike, seen closely."""


@dataclass(frozen=True)
class MarkedRows:
    """Encoded rows, their marks, and what these are compared by."""

    likeness: Likeness
    rows: datasets.Dataset
    marks: Sequence[bytes]

    @cached_property
    def _read(self) -> datasets.Dataset:
        return self.rows.select_columns(list(self.likeness.columns))

    def look(self, indices: Sequence[int]) -> list[Look]:
        return self.likeness.look(self._read[list(indices)])


def find_alike(known: MarkedRows, asked: MarkedRows) -> tuple[Found, Found]:
    """Known rows that are alike to one that is asked about, and those asked about that are alike to a known one.

    Rows of equal marks count as one. Known rows that are found are taken away, and the others searched again for what
    was found before, so that a row of which there are many copies is found in all of them.
    """
    (theirs, their_others), (ours, our_others) = (_by_mark(of.marks) for of in (known, asked))
    (their_marks, their_rows), (our_marks, our_rows) = ((list(of), list(of.values())) for of in (theirs, ours))
    of_known: Found = {}
    of_asked: Found = {}
    left, wanted, most = list(range(len(their_rows))), list(range(len(our_rows))), 4
    while left and wanted:
        found = asked.likeness.pairs([their_marks[i] for i in left], [our_marks[j] for j in wanted], most)
        sure = []
        for part in np.split(found, range(AT_ONCE, len(found), AT_ONCE)):
            pairs = [(left[i], wanted[j]) for i, j in part.tolist()]
            looks = known.look([their_rows[i] for i, _ in pairs]), asked.look([our_rows[j] for _, j in pairs])
            sure += [pair for pair, same in zip(pairs, asked.likeness.confirm(*looks), strict=True) if same]
        for i, j in sure:
            mine, other = our_rows[j], their_rows[i]
            for row in (other, *their_others.get(other, [])):
                of_known.setdefault(row, mine)
            for row in (mine, *our_others.get(mine, [])):
                of_asked.setdefault(row, other)
        gone = {i for i, _ in sure}
        left, wanted, most = [i for i in left if i not in gone], sorted({j for _, j in sure}), 4 * most
    return of_known, of_asked


def contradictions(of: MarkedRows, labels: Sequence[object]) -> list[tuple[int, int]]:
    """Rows whose content is that of an earlier row, but not their label; each with the first row of that content."""
    found: list[tuple[int, int]] = []
    for first, others in _by_mark(of.marks)[1].items():
        if unlike := [row for row in others if labels[row] != labels[first]]:
            content, *theirs = of.look([first, *unlike])
            found += [(row, first) for row, own in zip(unlike, theirs, strict=True) if np.array_equal(own, content)]
    return sorted(found)


def _by_mark(marks: Sequence[bytes]) -> tuple[dict[bytes, int], dict[int, list[int]]]:
    """The first row of each mark, and the others of those that several rows have.

    A list for each mark would take ten times as long, most of it the garbage collector's.
    """
    first: dict[bytes, int] = {}
    others: dict[int, list[int]] = {}
    for row, mark in enumerate(marks):
        if mark and (one := first.setdefault(mark, row)) != row:
            others.setdefault(one, []).append(row)
    return first, others


def _in_common(known: Sequence[Words], asked: Sequence[Words]) -> Iterator[tuple[Pairs, Pairs]]:
    """Words that rows have in common, of some rows asked about at a time: the rows, and the places of the word in them.

    Of a word that many have the first known are taken; zeros are no words.
    """
    theirs, their_rows, their_places = _flat(known)
    order = np.argsort(theirs, kind="stable")
    theirs, their_rows, their_places = theirs[order], their_rows[order], their_places[order]
    for start in range(0, len(asked), AT_ONCE):
        ours, our_rows, our_places = _flat(asked[start : start + AT_ONCE])
        first, last = (np.searchsorted(theirs, ours, side) for side in ("left", "right"))
        times = np.where(ours == 0, 0, np.minimum(last - first, MOST_OF_A_WORD))
        mine = np.repeat(np.arange(len(ours)), times)
        other = np.arange(len(mine)) + np.repeat(first - np.cumsum(times) + times, times)
        rows = np.stack([their_rows[other], start + our_rows[mine]], 1)
        yield rows, np.stack([their_places[other], our_places[mine]], 1)


MOST_OF_A_WORD = 64
"""Known places of one word that are looked at: rows that have commoner ones in common have others, too."""


def _flat(rows: Sequence[Words]) -> tuple[Words, Pairs, Pairs]:
    """All words, and the row and the place in it of each."""
    sizes = [len(words) for words in rows]
    ends = np.cumsum([0, *sizes])
    words = np.concatenate([np.zeros(0, np.uint32), *rows])
    return words, np.repeat(np.arange(len(rows)), sizes), np.arange(len(words)) - np.repeat(ends[:-1], sizes)


def _most_voted(keys: Pairs, most: int) -> Pairs:
    """Keys [n, columns], the last of which says whose they are, that came most often for each."""
    if not len(keys):
        return keys
    least = keys.min(0)
    sizes = tuple((keys.max(0) - least + 1)[::-1])  # as one number each, which is sorted ten times as fast
    codes, votes = np.unique(np.ravel_multi_index(tuple((keys - least).T[::-1]), sizes), return_counts=True)
    found = np.stack(np.unravel_index(codes, sizes)[::-1], 1) + least
    order = np.argsort(found[:, -1] * (len(keys) + 1) - votes, kind="stable")
    found = found[order]
    kept: Pairs = found[np.arange(len(found)) - np.searchsorted(found[:, -1], found[:, -1]) < most]
    return kept


# ------------------------------------------------------------------------------------------- texts

SHINGLE, BINS, BAND = 5, 64, 4
"""Characters that are hashed together, parts of all hashes of which the least is taken, and such that make a word."""
SAME_TEXT = 0.8
"""Share of all shingles of two texts that both have."""
_POWERS = np.array([0x01000193**n & 0xFFFFFFFF for n in range(SHINGLE)], np.uint32)


@dataclass(frozen=True)
class Texts(Likeness):
    """Texts by their resemblance, the Jaccard index of their shingles.

    Those that agree in a band of least hashes are compared: Broder, On the resemblance and containment of documents,
    1997; Li, Owen and Zhang, One permutation hashing, NIPS 2012.
    """

    kind: ClassVar[Literal["image", "audio", "texts"]] = "texts"
    columns: tuple[str, ...]
    read: Callable[[Columns], Sequence[str]]
    """Texts of encoded rows, or of rows that are not encoded yet."""

    def show(self, columns: Columns) -> bytes:
        return json.dumps({"text": self.read(columns)[0]}).encode()

    def mark(self, columns: Columns) -> list[bytes]:
        return [_bands_of_hashes(_shingles(text)).tobytes() for text in self.read(columns)]

    def pairs(self, known: Sequence[bytes], asked: Sequence[bytes], most: int) -> Pairs:
        theirs, ours = ([np.frombuffer(mark, np.uint32) for mark in marks] for marks in (known, asked))
        parts = [_most_voted(rows, most) for rows, _ in _in_common(theirs, ours)]
        return np.concatenate([np.zeros((0, 2), np.int64), *parts])

    def look(self, columns: Columns) -> list[Look]:
        return [_shingles(text) for text in self.read(columns)]

    def confirm(self, known: list[Look], asked: list[Look]) -> NDArray[np.bool_]:
        n_both = np.array([len(np.intersect1d(*pair, assume_unique=True)) for pair in zip(known, asked, strict=True)])
        n_all = np.array([len(theirs) + len(ours) for theirs, ours in zip(known, asked, strict=True)]) - n_both
        same: NDArray[np.bool_] = n_both >= SAME_TEXT * n_all
        return same


def _shingles(text: str) -> Words:
    """Hashes of a text's shingles, whatever its case, punctuation and spaces; in order, and none is zero."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"[\W_]+", " ", plain).strip() or plain
    codes = np.frombuffer(plain.ljust(SHINGLE).encode("utf-32-le", "surrogatepass"), np.uint32)
    hashes = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE) @ _POWERS
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finaliser
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(factor)
    return np.unique(np.maximum(hashes, np.uint32(1)))


def _bands_of_hashes(hashes: Words) -> Words:
    """A word of each few parts of the range of hashes by the least in each of them; zero for parts that are empty."""
    starts = np.arange(BINS, dtype=np.uint64) * (2**32 // BINS)
    first = np.append(hashes, np.uint32(0))[np.searchsorted(hashes, starts)]
    least = np.where(first // np.uint32(2**32 // BINS) == np.arange(BINS), first, np.uint32(0))
    return least.reshape(-1, BAND) @ _POWERS[1 : BAND + 1]


# ------------------------------------------------------------------------------------------- sound

WORDS_PER_SECOND = 100
BANDS = 33
LOWEST, HIGHEST = 300, 2000
"""Hz between which sound is looked at: telephones keep it, and compression does little to it."""
BLUR_SECONDS = 0.2
QUIET = 1e-4
"""Share of a recording's loudest power below which nothing is said."""
SAME_BITS = 0.82
"""Share of the bits of two recordings that are equal; of different ones half are."""
SAME_SECONDS = 0.8
"""Share of the shorter recording that is compared."""


@dataclass(frozen=True)
class Sounds(Likeness):
    """Recordings by the signs of their spectrum's changes in time and frequency, 32 bits a frame.

    Pairs that have one frame in common are laid over each other there, and their bits compared. Source: Haitsma and
    Kalker, A highly robust audio fingerprinting system, ISMIR 2002.
    """

    kind: ClassVar[Literal["image", "audio", "texts"]] = "audio"
    columns: tuple[str, ...] = field(default=("row",), init=False)
    sampling_hz: int
    read: Callable[[bytes], Floats]
    """Samples, from -1 to 1, of what encoded rows hold as `audio`."""
    show: Callable[[Columns], bytes]

    def mark(self, columns: Columns) -> list[bytes]:
        return [b"" if held is None else self._words(self.read(held)).tobytes() for held in columns["audio"]]

    def look(self, columns: Columns) -> list[Look]:
        return [np.zeros(0)] * len(columns["row"])

    def confirm(self, known: list[Look], asked: list[Look]) -> NDArray[np.bool_]:
        """Marks have told all."""
        return np.ones(len(known), bool)

    def _words(self, samples: Floats) -> Words:
        size, hop = 2 ** round(np.log2(self.sampling_hz / 16)), self.sampling_hz // WORDS_PER_SECOND
        padded = np.pad(samples, (0, size))
        frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
        power = np.concatenate(
            [
                np.abs(fft.rfft(frames[i : i + AT_ONCE] * _hann(size), axis=1)) ** 2 @ _bands(size, self.sampling_hz)
                for i in range(0, len(frames), AT_ONCE)
            ]
        )
        blurred = uniform_filter1d(power, round(BLUR_SECONDS * WORDS_PER_SECOND), axis=0, mode="constant")
        steps = np.diff(np.diff(blurred, axis=1), axis=0, prepend=0)
        words = np.packbits(steps > 0, axis=1).view(">u4")[:, 0].astype(np.uint32)
        loud = blurred.sum(1)
        return np.where(loud > QUIET * loud.max(), np.maximum(words, 1), 0).astype(np.uint32)

    def pairs(self, known: Sequence[bytes], asked: Sequence[bytes], most: int) -> Pairs:
        theirs, ours = ([np.frombuffer(mark, np.uint32) for mark in marks] for marks in (known, asked))
        parts = [np.zeros((0, 2), np.int64)]
        for rows, places in _in_common(theirs, ours):
            shift = places[:, :1] - places[:, 1:]
            found = _most_voted(np.concatenate([rows[:, :1], shift, rows[:, 1:]], 1), 2 * most)
            same = [_same_sound(theirs[i], ours[j], int(by)) for i, by, j in found.tolist()]
            parts.append(np.unique(found[np.array(same, bool)][:, [0, 2]], axis=0))
        return np.concatenate(parts)


def _same_sound(theirs: Words, ours: Words, shift: int) -> bool:
    """Tell whether two recordings are one, where the second begins so many frames after the first."""
    theirs, ours = theirs[max(shift, 0) :], ours[max(-shift, 0) :]
    n_both, n_said = min(len(theirs), len(ours)), min(np.count_nonzero(theirs), np.count_nonzero(ours))
    heard = (theirs[:n_both] != 0) & (ours[:n_both] != 0)
    if n_said == 0 or heard.sum() < SAME_SECONDS * n_said:
        return False
    differ = np.bitwise_count(theirs[:n_both] ^ ours[:n_both])[heard]
    return float(differ.mean()) <= 32 * (1 - SAME_BITS)


@cache
def _hann(size: int) -> Floats:
    return np.hanning(size).astype(np.float32)


@cache
def _bands(size: int, hz: int) -> Floats:
    """Bins by bands of equal width on a logarithmic scale, [bins, bands]; a narrow band has a share of a bin."""
    edges = np.geomspace(LOWEST, HIGHEST, BANDS + 1)
    bins = np.arange(size // 2 + 1)[:, None] * hz / size
    width = hz / size
    low, high = np.maximum(bins - width / 2, edges[:-1]), np.minimum(bins + width / 2, edges[1:])
    shares: Floats = (np.maximum(high - low, 0) / width).astype(np.float32)
    return shares


# ---------------------------------------------------------------------------------------- pictures

COARSE, FINE = 12, 24
"""Sides of the pictures that are compared: the grey mark, and the colours seen closely."""
FREQUENCIES = 7
NEAR = 0.75
"""Distance of the low frequencies of two marks that may be alike, each vector of length one."""
SAME_COLOUR = 32.0
"""Levels by which any 3 × 3 points of two pictures may differ, seen closely."""
SAME_SHARE = 0.55
"""Share of their contrast by which any 3 × 3 points of two marks may differ, besides the noise."""
NOISE = 4.0
"""Levels by which pictures of one colour may differ; those of little contrast by as much as that is, seen closely."""
LEAST = 8.0
"""Length of the low frequencies below which a picture is as good as empty."""
FEW_KNOWN = 4096
"""Pictures up to which each is compared with each."""
PROBES = 16


@dataclass(frozen=True)
class Pictures(Likeness):
    """Pictures by their low frequencies, and then point by point, laid over each other as well as can be.

    The one is moved and stretched until it fits the other: Lucas and Kanade, An iterative image registration technique,
    IJCAI 1981.
    """

    kind: ClassVar[Literal["image", "audio", "texts"]] = "image"
    columns: tuple[str, ...] = field(default=("pixels", "height", "width", "fitted"), init=False)
    seen: float
    """Share of each side of a picture, in its middle, that is left of those that are `fitted`; others are cut so."""
    square: bool
    """It is a share of the shorter side."""
    show: Callable[[Columns], bytes]

    def mark(self, columns: Columns) -> list[bytes]:
        marks = [b""] * len(columns["pixels"])
        by_size: dict[tuple[int, int, bool], list[int]] = {}
        for i, size in enumerate(zip(columns["height"], columns["width"], columns["fitted"], strict=True)):
            if columns["pixels"][i]:
                by_size.setdefault(size, []).append(i)
        for (height, width, fitted), rows in by_size.items():
            content = b"".join([columns["pixels"][i] for i in rows])
            pixels = np.frombuffer(content, np.uint8).reshape(-1, 3, height, width)
            for i, levels in zip(rows, _grey(self._seen(pixels, fitted=fitted)), strict=True):
                marks[i] = levels.tobytes()
        return marks

    def _seen(self, pixels: NDArray[np.uint8], *, fitted: bool) -> NDArray[np.uint8]:
        """The middle of pictures [..., 3, height, width] that the model sees."""
        height, width = pixels.shape[-2:]
        if fitted:
            return pixels
        high, wide = (min(height, width),) * 2 if self.square else (height, width)
        high, wide = max(round(self.seen * high), 1), max(round(self.seen * wide), 1)
        top, left = (height - high) // 2, (width - wide) // 2
        return pixels[..., top : top + high, left : left + wide]

    def pairs(self, known: Sequence[bytes], asked: Sequence[bytes], most: int) -> Pairs:
        theirs, ours = (_of_marks(marks) for marks in (known, asked))
        found = _nearest(_low_frequencies(theirs), _low_frequencies(ours), most)
        same = [np.zeros(0, bool)]
        for part in np.split(found, range(AT_ONCE, len(found), AT_ONCE)):
            both = theirs[part[:, 0]], ours[part[:, 1]]
            same.append(_worst(*both, steps=1) <= NOISE + SAME_SHARE * _contrast(*both))
        alike: Pairs = found[np.concatenate(same)]
        return alike

    def look(self, columns: Columns) -> list[Look]:
        sizes = zip(columns["height"], columns["width"], strict=True)
        pictures = [
            np.frombuffer(content, np.uint8).reshape(3, *size)
            for content, size in zip(columns["pixels"], sizes, strict=True)
        ]
        seen = [self._seen(pixels, fitted=done) for pixels, done in zip(pictures, columns["fitted"], strict=True)]
        return [_shrunk(pixels.astype(np.float32), FINE) for pixels in seen]

    def confirm(self, known: list[Look], asked: list[Look]) -> NDArray[np.bool_]:
        if not known:
            return np.zeros(0, bool)
        theirs, ours = (np.stack(looks).astype(np.float32) for looks in (known, asked))
        # Either may be the one that was cut.
        least: Floats = np.minimum(_worst(theirs, ours, steps=4), _worst(ours, theirs, steps=4))
        same: NDArray[np.bool_] = least <= np.clip(_contrast(theirs, ours), NOISE, SAME_COLOUR)
        return same


def _grey(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The marks of pictures of one size [pictures, 3, height, width], as [pictures, side, side]."""
    red, green, blue = pictures.transpose(1, 0, 2, 3)
    grey = red.astype(np.uint16) + green + green + blue
    shrunk = _averages(grey.shape[1], COARSE) @ grey.astype(np.float32) @ _averages(grey.shape[2], COARSE).T
    levels: NDArray[np.uint8] = (shrunk / 4).round().astype(np.uint8)
    return levels


def _of_marks(marks: Sequence[bytes]) -> Images:
    return np.frombuffer(b"".join(marks), np.uint8).reshape(-1, 1, COARSE, COARSE).astype(np.float32)


def _shrunk(picture: Floats, side: int) -> Images:
    """A picture [3, height, width] as a square."""
    shrunk = _averages(picture.shape[1], side) @ picture @ _averages(picture.shape[2], side).T
    return shrunk.astype(np.float32, copy=False)


@cache
def _averages(length: int, n: int) -> Floats:
    """Weights of so many points in each of n equal parts of their length, [n, length]."""
    low, high = (np.arange(n)[:, None] + side for side in (0, 1))
    points = np.arange(length) * n / length
    part = np.minimum(high, points + n / length) - np.maximum(low, points)
    weights: Floats = np.maximum(part, 0).astype(np.float32)
    return weights


def _low_frequencies(images: Images) -> Floats:
    """Directions of grey images, without their brightness, [images, 50]; empty ones have one of their own.

    The higher a frequency the less of it there is, and the more images differ in it; so it is given more weight.
    """
    found = images.reshape(len(images), -1) @ _waves()
    length = np.linalg.norm(found, axis=1, keepdims=True)
    emptiness = np.sqrt(np.maximum(1 - (length / LEAST) ** 2, 0))
    directions: Floats = np.concatenate([found / np.maximum(length, LEAST), emptiness], 1)
    return directions


@cache
def _waves() -> Floats:
    """The cosines of low frequencies in height and width, weighted, [points, frequencies]."""
    waves = fft.dct(np.eye(COARSE), axis=0, norm="ortho")[:FREQUENCIES]
    weights = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES]) ** 0.5
    both: Floats = (np.kron(waves, waves) * weights.reshape(-1, 1)).T.astype(np.float32)
    return both


def _nearest(known: Floats, asked: Floats, most: int) -> Pairs:
    """The nearest known vectors of each that is asked about, of those that are near.

    Many are dealt to some of them, and those looked through that belong to the nearest few of these.
    """
    n_parts = 1 if len(known) <= FEW_KNOWN else round(len(known) ** 0.5)
    centres = known[:: -(-len(known) // n_parts)]
    part_of = np.concatenate([(known[i : i + AT_ONCE] @ centres.T).argmax(1) for i in range(0, len(known), AT_ONCE)])
    members = _by_part(part_of, len(centres))
    known_of = [known[theirs] for theirs in members]
    probes, least = min(PROBES, len(centres)), 1 - NEAR**2 / 2
    parts = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(asked), FEW_KNOWN):
        vectors = asked[start : start + FEW_KNOWN]
        probed = np.argpartition(vectors @ centres.T, -probes, axis=1)[:, -probes:]
        pairs, likeness = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
        for i, places in enumerate(_by_part(probed.ravel(), len(centres))):
            ours = places // probes
            product = vectors[ours] @ known_of[i].T
            near = np.flatnonzero(product.max(1, initial=-1) >= least)  # a tenth of the time of comparing all
            row, column = np.nonzero(product[near] >= least)
            pairs.append(np.stack([members[i][column], ours[near[row]]], 1))
            likeness.append(product[near[row], column])
        found = np.concatenate(pairs)
        found = found[np.lexsort((-np.concatenate(likeness), found[:, 1]))]
        place = np.arange(len(found)) - np.searchsorted(found[:, 1], found[:, 1])
        parts.append(found[place < most] + np.array([0, start]))
    return np.concatenate(parts)


def _by_part(part_of: Pairs, n_parts: int) -> list[Pairs]:
    """The places of each part, in order."""
    order = np.argsort(part_of, kind="stable")
    return np.split(order, np.searchsorted(part_of[order], np.arange(1, n_parts)))


MOST_STRETCHED, MOST_MOVED = 0.12, 0.1
"""By shares of a side."""
EDGE = 0.01
"""Of a point by which a picture may be read beyond its outermost points."""


def _contrast(theirs: Images, ours: Images) -> Floats:
    """The standard deviation over each of two pictures, the lesser one, in the colour that has most of it."""
    contrast: Floats = np.minimum(*(images.std((2, 3)).max(1) for images in (theirs, ours)))
    return contrast


def _worst(theirs: Images, ours: Images, *, steps: int) -> Floats:
    """Levels by which those 3 × 3 points of two pictures differ that differ most."""
    worst: Floats = np.abs(uniform_filter(_misfit(theirs, ours, steps=steps), (0, 0, 3, 3))).max((1, 2, 3))
    return worst


def _misfit(theirs: Images, ours: Images, *, steps: int) -> Images:
    """Differences of pictures after ours are moved and stretched along both sides to fit; zero beyond their edges."""
    n_pictures, _, side, _ = ours.shape
    place = np.arange(side, dtype=np.float32) - (side - 1) / 2
    motion = np.zeros((n_pictures, 4), np.float32)  # stretched and moved, in height and in width
    most = np.array([MOST_STRETCHED, MOST_MOVED * side] * 2, np.float32)
    misfit, laid, seen = theirs - ours, ours, np.ones((1, 1, 1, 1), bool)
    for _ in range(steps):
        down, along = np.gradient(laid, axis=(2, 3))
        change = np.stack([down * place[:, None], down, along * place, along], 1) * seen[:, None]
        change = change.reshape(n_pictures, 4, ours[0].size if n_pictures else 0)
        square = change @ change.transpose(0, 2, 1)
        square += np.eye(4, dtype=np.float32) * (1e-3 / 4 * np.trace(square, axis1=1, axis2=2)[:, None, None] + 1e-6)
        towards = np.linalg.solve(square, change @ misfit.reshape(*change.shape[::2], 1))[..., 0]
        motion = np.clip(motion + towards, -most, most)
        (rows, seen_rows), (columns, seen_columns) = (_sampling(place, motion[:, i : i + 2]) for i in (0, 2))
        laid = (rows[:, None] @ ours @ columns[:, None].swapaxes(2, 3)).astype(np.float32, copy=False)
        seen = (seen_rows[:, :, None] & seen_columns[:, None, :])[:, None]
        misfit = (theirs - laid) * seen
    return misfit


def _sampling(place: Floats, motion: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Weights that read pictures along one side, stretched and moved, [pictures, side, side], and which are inside."""
    side = len(place)
    at = place * (1 + motion[:, :1]) + motion[:, 1:] + (side - 1) / 2
    weights = np.maximum(1 - np.abs(np.clip(at, 0, side - 1)[..., None] - np.arange(side, dtype=np.float32)), 0)
    return weights.astype(np.float32), (at >= -EDGE) & (at <= side - 1 + EDGE)
