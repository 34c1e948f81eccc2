"""Hidden states of transformers, and the rows they come from."""

from ._extractor import Extractor, TransformerActivationExtractor
from ._keep_rows import KeepRows
from ._pooler import ConceptPooler
from ._rows import Rows

__all__ = [
    "ConceptPooler",
    "Extractor",
    "KeepRows",
    "Rows",
    "TransformerActivationExtractor",
]
