"""What ``speed.py`` measures: sizes, who competes at each, and groups of them with names."""

import dataclasses
from typing import NamedTuple

PEERS = ("overcomplete", "interpreto", "saelens", "dictionary_learning", "sparsify")
OWN = ("sksae", "sksae-bare", "sksae-reference")
COMPETITORS = (*OWN, *PEERS, "sklearn")
VARIANTS = ("topk", "batchtopk", "jumprelu", "vanilla")


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of sizes.

    Attributes
    ----------
    variant : str
        Of `VARIANTS`.
    m : int
        Concepts.
    k : int
        Active concepts per row; of JumpReLU and Vanilla the target of sksae.
    b : int
        Rows per step.
    d : int
        Features.
    """

    variant: str = "topk"
    m: int = 4096
    k: int = 32
    b: int = 1024
    d: int = 384

    def __str__(self):
        return f"{self.variant}:m={self.m},k={self.k},b={self.b},d={self.d}"

    @classmethod
    def of(cls, text):
        """Read what ``str`` gives; sizes that are left out are the defaults."""
        variant, _, sizes = text.partition(":")
        given = (size.split("=", 1) for size in sizes.split(",") if size)
        return cls(variant, **{key: int(value) for key, value in given})


class Entry(NamedTuple):
    """A case and its competitors."""

    case: Case
    competitors: tuple


def _topk(*, widths=(4096, 16384, 65536), batches=(1024, 4096), features=(384, 768)):
    cases = (Case("topk", m, 32, b, d) for d in features for b in batches for m in widths)
    return [Entry(case, (*OWN, *PEERS)) for case in cases]


def _variants():
    own = ("sksae", "sksae-reference")
    return [Entry(Case(variant), (*own, *PEERS)) for variant in VARIANTS[1:]]


def _growth():
    """Vary one size at a time around the default."""
    cases = [Case(m=m) for m in (1024, 2048, 4096, 8192, 16384, 32768, 65536)]
    cases += [Case(k=k) for k in (8, 16, 64, 128)]
    cases += [Case(d=d) for d in (192, 768, 1536)]
    cases += [Case(b=b) for b in (256, 512, 2048, 4096)]
    return [Entry(case, ("sksae",)) for case in cases]


def _cuda():
    """Give the ends first, where the other libraries take part as long as there is time."""
    own, others = ("sksae", "sksae-bare"), ((4096, PEERS), (32768, PEERS), (8192, ()), (16384, ()))
    return [Entry(Case("topk", 24576, 32, b, 768), own + peers) for b, peers in others]


GROUPS = {
    "quick": lambda: _topk(widths=(4096,), batches=(1024,), features=(384,)),
    "topk": lambda: _topk(widths=(4096, 16384), batches=(1024,), features=(384,)),
    "full": _topk,
    "variants": _variants,
    "overhead": lambda: [Entry(Case(m=m), OWN[:2]) for m in (1024, 4096, 16384)],
    "growth": _growth,
    "sklearn": lambda: [Entry(Case(m=1024), ("sksae", "sklearn"))],
    "cuda": _cuda,
}


def entries(names, libraries):
    """Give the entries of groups, or of single cases in the form ``topk:m=4096,b=1024``.

    Parameters
    ----------
    names : list of str
    libraries : list of str
        The competitors that take part.
    """
    found = {}
    for name in names:
        group = GROUPS[name]() if name in GROUPS else [Entry(_checked(name), COMPETITORS)]
        for case, competitors in group:
            found.setdefault(case, []).extend(c for c in competitors if c in libraries)
    return [Entry(case, list(dict.fromkeys(able))) for case, able in found.items() if able]


def _checked(text):
    """Read a case that was given on the command line."""
    try:
        case = Case.of(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r} is not like 'topk:m=4096,k=32,b=1024,d=384'.") from error
    if case.variant not in VARIANTS:
        raise ValueError(f"{case.variant!r} is neither in {VARIANTS} nor in {tuple(GROUPS)}.")
    return case


def can(competitor, case):
    """Tell whether a competitor has the variant, and is not hopeless at the size."""
    if competitor == "sparsify":
        return case.variant == "topk"
    if competitor == "sklearn":
        return case.variant == "topk" and case.m <= 1024
    return True
