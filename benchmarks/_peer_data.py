"""Rows in the forms that the libraries' own trainers take, from memory.

Imported in every library's environment; needs torch alone.
"""

import importlib.util
import sys

import torch


class Batches:
    """Shuffled batches of rows; each pass over it is a new epoch."""

    def __init__(self, X, batch_size, seed):
        self.X, self.batch_size = X, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return -(-len(self.X) // self.batch_size)

    def __iter__(self):
        for index in torch.randperm(len(self.X), generator=self.generator).split(self.batch_size):
            yield self.X[index.to(self.X.device)]

    def epochs(self, n):
        """Give the batches of ``n`` epochs."""
        for _ in range(n):
            yield from self


class Repeated:
    """All epochs in one pass, from the start for each pass.

    dictionary_learning's ``trainSAE`` takes a first pass of a hundred batches to find the scale.
    """

    def __init__(self, batches, n_epochs):
        self.batches, self.n_epochs = batches, n_epochs

    def __iter__(self):
        return self.batches.epochs(self.n_epochs)


class RowNumbers:
    """Shuffled row numbers of all epochs, in sequences: what sparsify takes for tokens."""

    length = 32

    def __init__(self, n_rows, n_epochs, seed):
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(n_rows, generator=generator) for _ in range(n_epochs)]
        order = torch.cat(order)
        self.sequences = order[: len(order) // self.length * self.length].view(-1, self.length)

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, i):
        return {"input_ids": self.sequences[i]}


class Lookup(torch.nn.Module):
    """A model whose only layer turns row numbers into rows, for sparsify."""

    def __init__(self, X):
        super().__init__()
        self.rows = torch.nn.Embedding.from_pretrained(X)
        self.device = X.device
        self.dummy_inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device=X.device)}

    @property
    def base_model(self):
        """The model itself, as in transformers."""
        return self

    def forward(self, input_ids):
        """Give rows of shape (*input_ids.shape, n_features)."""
        return self.rows(input_ids)


def import_overcomplete():
    """Import ``overcomplete.sae``: the package's __init__ needs an older matplotlib, and libGL."""
    if "overcomplete" not in sys.modules:
        spec = importlib.util.find_spec("overcomplete")
        sys.modules["overcomplete"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("overcomplete.sae")


def warm_up(device="cpu"):
    """Take one step of Adam: torch imports parts of itself at the first, for seconds."""
    layer = torch.nn.Linear(2, 2, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, device=device)).sum().backward()
    optimizer.step()
