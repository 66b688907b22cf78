"""A shortcut: what an estimator's method computes in fewer steps, for rows that need no checking.

A shortcut is used only after it has given the very bits of the method for made-up rows, and only for rows that nobody could
object to; all others go the estimator's own way, which has the words to refuse them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.tensors import Array

# an estimator's method: rows → an array, or a list of them
Method = Callable[[Any], Any]

# The largest numbers that count as plain: those that a float32 holds, or of which a float64 holds the square.
FLOAT32 = 1e37
FLOAT64 = 1e150
# Numbers that are looked at in one call of BLAS, which takes threads for more of them.
_SMALL = 8192
# rows that a shortcut is tried with in one call: alone, few, and more than one block of them
_ROWS = (1, 1, 2, 7, 33, 257)
_VALUES = 1 << 18
_SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e-40, 1e8, -1e8, 1e30, -1e30, 1e36, -1e36)
_FLOAT = np.dtype(np.float64)


@dataclass(frozen=True)
class Shortcut:
    """`run` takes a float64 array of at least one row and `width` columns, and does not write into it.

    `largest`: FLOAT32 or FLOAT64.  `nan`: NaN is as good as a number.  `edges`: for each column, the values at which
    answers change; may be empty.
    """

    how: str
    width: int
    run: Method
    largest: float = FLOAT64
    nan: bool = False
    edges: tuple[Array, ...] = ()


def guarded(shortcut: Shortcut, own: Method) -> Method:
    """A shortcut for plain rows, and the estimator's own method for any others."""
    run, width, largest, nan = shortcut.run, shortcut.width, shortcut.largest, shortcut.nan
    square = largest * largest

    def method(x: Any) -> Any:
        if type(x) is not np.ndarray or x.dtype != _FLOAT or x.ndim != 2 or x.shape[1] != width or not len(x):
            return own(x)
        # a NaN makes either comparison false; where no sum of squares is too large, no number is
        if (np.vdot(x, x) < square) if x.size <= _SMALL else (np.abs(x).max() <= largest):
            return run(x)
        return run(x) if nan and not (np.abs(x) > largest).any() else own(x)

    return method


def difference(shortcut: Shortcut, own: Method, seed: int = 0) -> str:
    """Where a shortcut, guarded, does not give what the estimator's own method gives to the last bit; empty where it does.

    Rows are tried alone and together; what the method refuses, the shortcut has to refuse in the same words.
    """
    method = guarded(shortcut, own)
    for rows in _rows(shortcut, seed):
        mistake = compared(method, own, rows)
        if mistake:
            return f"for {_counted(len(rows))} {mistake}"
    return ""


def compared(method: Method, own: Method, rows: Any) -> str:
    """What differs between two methods for some rows; empty where nothing does."""
    try:
        expected = own(rows)
    except Exception as error:
        try:
            method(rows)
        except Exception as other:
            same = type(other) is type(error) and str(other) == str(error)
            return "" if same else f"it says {other!r}, and scikit-learn {error!r}"
        return f"it answers, and scikit-learn says {error!r}"
    try:
        found = method(rows)
    except Exception as error:
        return f"it says {error!r}, and scikit-learn answers"
    return _differs(found, expected)


def _differs(found: Any, expected: Any) -> str:
    if type(found) is not type(expected):
        return f"it gives a {type(found).__name__}, and scikit-learn a {type(expected).__name__}"
    if isinstance(expected, list):
        if len(found) != len(expected):
            return f"it gives {len(found)} arrays, and scikit-learn {len(expected)}"
        return next((d for pair in zip(found, expected, strict=True) if (d := _differs(*pair))), "")
    if not isinstance(expected, np.ndarray):
        return f"scikit-learn gives a {type(expected).__name__}"
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"it gives {found.dtype}{list(found.shape)}, and scikit-learn {expected.dtype}{list(expected.shape)}"
    if expected.dtype.hasobject:
        return "" if np.array_equal(found, expected) else "labels differ"
    if found.tobytes() == expected.tobytes():
        return ""
    bits = f"V{expected.dtype.itemsize}"
    return f"{int((_bits(found, bits) != _bits(expected, bits)).sum())} of {expected.size} numbers differ"


def _bits(array: Array, dtype: str) -> Array:
    return np.ascontiguousarray(array).view(dtype)


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _rows(shortcut: Shortcut, seed: int) -> Iterator[Array]:
    """Made-up rows of all kinds, and then such as an estimator may refuse."""
    rng = np.random.default_rng(seed)
    for count in _ROWS:
        yield made_up(rng, min(count, max(1, _VALUES // shortcut.width)), shortcut.width, shortcut.edges)
    if shortcut.nan:
        for count in (1, 33):
            rows = made_up(rng, count, shortcut.width, shortcut.edges)
            yield np.where(rng.random(rows.shape) < 0.3, np.nan, rows)
    plain = rng.standard_normal((2, shortcut.width))
    yield plain[:, ::-1]
    for odd in (np.nan, np.inf, -np.inf, 1e39, 1e200):
        refused = plain.copy()
        refused[-1, 0] = odd
        yield refused
    yield np.hstack([plain, plain])
    yield plain[:0]


def made_up(rng: np.random.Generator, count: int, width: int, edges: tuple[Array, ...]) -> Array:
    """Rows of usual and unusual size, of special numbers, and at the edges or one step beside them."""
    rows = rng.standard_normal((count, width)) * 10.0 ** rng.integers(-2, 4, (count, 1))
    for column, values in enumerate(edges):
        if len(values):
            picked = rng.choice(values, count)
            step = rng.choice(np.array([-np.inf, np.inf], np.float32), count)
            beside = np.nextafter(picked.astype(np.float32), step)
            where = rng.random(count)
            rows[:, column] = np.select(
                [where < 0.4, where < 0.7, where < 0.9], [picked, beside, picked + rows[:, column]], rows[:, column]
            )
    special = rng.random((count, width)) < 0.05
    rows[special] = rng.choice(_SPECIAL, int(special.sum()))
    return rows
