"""What every SAE module adds to its overcomplete class: biases, units and a plain dictionary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import (
    RowGradients,
    SparseCodes,
    Workspace,
    encode,
    own_threads,
    reconstruct,
    scale_rows,
    unit_rows_,
)
from ._overcomplete import overcomplete_sae

# overcomplete's registered encoders that take vectors; the others take images or sequences.
VECTOR_ENCODERS = ("identity", "linear", "mlp_ln_1", "mlp_ln_3", "mlp_bn_1", "mlp_bn_3")


class Dictionary(overcomplete_sae.DictionaryLayer):
    """The dictionary layer, as a pure function of its weights.

    ``get_dictionary`` gives ``normalization(weights) * exp(multiplier)`` in training and
    in evaluation alike and never writes: its gradient has no part along a row, codes
    cannot be decoded with an old dictionary after ``load_state_dict``, and deep copies
    work. `project_` writes the normalised rows back between steps.
    """

    def get_dictionary(self) -> Tensor:
        """Give the dictionary, shape (nb_concepts, n_features)."""
        return self.normalization(self._weights) * torch.exp(self.multiplier)

    def normalized(self, rows: Tensor) -> Tensor:
        """Give what rows of the weights are in the dictionary."""
        return self.normalization(rows) * torch.exp(self.multiplier)

    @property
    def has_unit_rows(self) -> bool:
        """Whether the rows have unit Euclidean norm and nothing else is learnt of them."""
        learns_scale = isinstance(self.multiplier, nn.Parameter)
        return self.normalization is self.NORMALIZATIONS["l2"] and not learns_scale

    @property
    def has_separate_rows(self) -> bool:
        """Whether a row of the dictionary is known to depend on that row of the weights alone."""
        names = ("l2", "l1", "identity")
        return self.normalization in [self.NORMALIZATIONS[name] for name in names]

    @torch.no_grad()
    def project_(self) -> None:
        """Write the normalised rows into the weights."""
        on_cpu = self._weights.device.type == "cpu"
        if on_cpu and self.normalization is self.NORMALIZATIONS["l2"]:
            unit_rows_(self._weights)
        else:
            self._weights.copy_(self.normalization(self._weights))

    def train(self, mode: bool = True) -> Dictionary:
        """Switch the mode; there is no cached dictionary to refresh."""
        nn.Module.train(self, mode)
        return self


class SAEModule:
    """Mixin over an overcomplete SAE class that gives it units, biases and tied starts.

    The module works on the scaled input ``u = x / input_scale``::

        pre_codes, relu_codes = encoder(u - decoder_bias)
        codes                 = sparsify(pre_codes, relu_codes)
        u_hat                 = codes @ dictionary + decoder_bias

    `encode`, `decode` and ``forward`` take and give input units; `encode_scaled` and
    `forward_scaled`, which training uses, take and give scaled units.

    Parameters
    ----------
    n_features : int
        Width of the input.
    nb_concepts : int
        Number of dictionary rows.
    encoder_module : str, torch.nn.Module, or None
        As in overcomplete; a module is copied. None is one linear layer that starts as
        the transpose of the dictionary, shrunk.
    encoder_init_norm : float
        Norm of the linear encoder's rows at the start, where dictionary rows have norm 1.
    dictionary_params : dict, or None
        ``normalization``, ``initializer`` and ``use_multiplier`` of the dictionary layer.
    **variant
        Parameters of the overcomplete class.
    """

    input_scale: Tensor
    center: Tensor
    max_distance: Tensor
    samples_since_fired: Tensor
    dead_concepts: Tensor
    decoder_bias: nn.Parameter
    encoder: nn.Module
    dictionary: Dictionary
    # Whether `select_stored` and `select_active` take pre-codes that are `Screened`.
    screens = True
    # Whether each sample keeps its own largest codes, as at the start of a fit it may.
    per_sample = False
    # Whether it does so to the end, as too many concepts were silent; in how many steps it did.
    keeps_apart = False
    n_own_steps = 0
    # Shares of the concepts that may be silent before it is so: early in a fit, and at last.
    most_silent = most_silent_at_last = 1.0
    # Power of their size by which rows are divided: where they share codes, see `row_sizes`, or
    # where they have codes above thresholds, themselves, see `start_rows`.
    relative: float | Tensor = 0.0
    has_start_rows = False
    # Whether it matters which concepts come first, and they can change places.
    can_be_sorted = False
    # Which steps, by their operations, depend on no values, so that they can be repeated as they
    # were, those on "stored" or on "dense" codes; of a class alone, and not of its subclasses.
    repeats: tuple[str, ...] = ()
    # The dead concepts, and numbers of none up to a length that seldom changes.
    dead_places: Tensor | None = None
    # Whether dense codes take little more than the encoder's product: then they are made as they
    # are, and on CUDA devices, where the number of stored ones has to be read, trained with.
    dense_is_fast = False
    # Whether in training it has to be read how many codes are stored.
    counts_codes = False
    # Set where a step of the optimizer goes by rows: instead of gradients of matrices.
    row_gradients: RowGradients | None = None

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        encoder_module: str | nn.Module | None = None,
        encoder_init_norm: float = 1.0,
        dictionary_params: dict[str, Any] | None = None,
        **variant: Any,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            n_features, nb_concepts, encoder_module=copy.deepcopy(encoder_module), **variant
        )
        self.dictionary = Dictionary(
            n_features, nb_concepts, **_dictionary_arguments(dictionary_params)
        )
        self.dictionary.project_()
        self.decoder_bias = nn.Parameter(torch.zeros(n_features))
        self._buffer("input_scale", torch.ones(()))
        self._buffer("center", torch.zeros(n_features))
        self._buffer("max_distance", torch.tensor(torch.inf))
        self._buffer("samples_since_fired", torch.zeros(nb_concepts, dtype=torch.int64))
        self.register_buffer(  # type: ignore[attr-defined]
            "dead_concepts", torch.zeros(0, dtype=torch.int64), persistent=False
        )
        self.has_linear_encoder = encoder_module is None
        if encoder_module is None:
            self._tie_encoder(encoder_init_norm)

    def _buffer(self, name: str, value: Tensor) -> None:
        vars(self).pop(name, None)  # overcomplete's plain attribute of that name
        self.register_buffer(name, value)  # type: ignore[attr-defined]

    @property
    def linear_encoder(self) -> nn.Linear:
        """The linear layer that is the encoder, where ``has_linear_encoder``."""
        (linear,) = (m for m in self.encoder.modules() if isinstance(m, nn.Linear))
        return linear

    @torch.no_grad()
    def _tie_encoder(self, norm: float) -> None:
        """Start the linear encoder as the dictionary's transpose times a factor, with no bias."""
        self.linear_encoder.weight.copy_(norm * self.dictionary.get_dictionary())
        self.linear_encoder.bias.zero_()

    @torch.no_grad()
    def set_units(self, bias: Tensor, scale: Tensor | float, radius: float = torch.inf) -> None:
        """Set, in input units, decoder bias (shape (n_features,)), scale and `pull_in`'s radius."""
        self.input_scale.fill_(scale)
        self.max_distance.fill_(radius / scale)
        self.decoder_bias.copy_(bias / self.input_scale)
        self.center.copy_(self.decoder_bias)

    @property
    def pre_bias(self) -> Tensor:
        """What is subtracted from the scaled input, shape (n_features,); the decoder bias."""
        return self.decoder_bias

    @property
    def output_scale(self) -> Tensor:
        """What scaled reconstructions are multiplied by to be in output units: a number."""
        return self.input_scale

    @property
    def code_scale(self) -> Tensor:
        """What scaled codes are multiplied by: a number, or one for each concept."""
        return self.output_scale

    @torch.no_grad()
    def scale_rows(self, x: Tensor) -> Tensor:
        """Give rows in scaled units, those beyond the radius as `pull_in` gives them."""
        return scale_rows(x, self.input_scale, self.center, self.max_distance)

    @torch.no_grad()
    def pull_in(self, u: Tensor) -> Tensor:
        """Move scaled rows beyond the radius towards the center of the data, onto the radius.

        The linear encoder gives what lies farther in the same direction larger codes in
        proportion, so that a row need not be seen at its length.
        """
        return distance_cut(u, self.center, self.max_distance)

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Choose the active codes, shape (n, nb_concepts); here all of the encoder's."""
        return relu_codes

    def start_rows(self, u: Tensor) -> Tensor:
        """Give what a training step sees of scaled rows, shape (n, n_features); here the rows."""
        return u

    def row_sizes(self, u: Tensor) -> Tensor | None:
        """Give what scaled rows, shape (n, n_features), are divided by where they share codes."""
        return None

    def encode_scaled(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(pre_codes, codes)``, each (n, nb_concepts), of scaled input (n, n_features)."""
        pre_codes, relu_codes = self.encoder(u - self.pre_bias)
        return pre_codes, self.sparsify(pre_codes, relu_codes)

    def forward_scaled(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give ``(pre_codes, codes, u_hat, dictionary)`` of scaled input."""
        pre_codes, codes = self.encode_scaled(u)
        dictionary = self.dictionary.get_dictionary()
        return pre_codes, codes, codes @ dictionary + self.decoder_bias, dictionary

    @property
    def selects(self) -> bool:
        """Whether `select_stored` and `select_active` can replace `encode_scaled`."""
        classes = type(self).__mro__

        def depth(name: str) -> int:
            return next(i for i, cls in enumerate(classes) if name in vars(cls))

        # A subclass that has its own way to encode needs its own selection.
        own = min(depth(name) for name in ("sparsify", "encode_scaled", "forward_scaled"))
        selection = depth("select_stored")
        selects = classes[selection] is not SAEModule and selection <= own
        return self.has_linear_encoder and selects

    def sparse_obstacle(self) -> str | None:
        """Say what keeps `forward_sparse` from giving what `forward_scaled` gives, if anything."""
        if not self.has_linear_encoder:
            return "encoder_module is not the linear one"
        if not self.selects:
            return f"{type(self).__name__} has no select_stored for its sparsify"
        if not self.dictionary.has_unit_rows:
            return "dictionary_params change the unit norm of the rows"
        return None

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose, in training, which of the pre-codes (n, nb_concepts) are stored.

        These are at least the ones that are active or have a gradient.
        """
        raise NotImplementedError

    def select_active(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose, at evaluation, the active codes from pre-codes (n, nb_concepts)."""
        return self.select_stored(pre_codes)

    @torch.no_grad()
    @own_threads()
    def encode_sparse(self, x: Tensor, workspace: Workspace) -> tuple[SparseCodes, Tensor]:
        """Give the active codes in input units, with memory for pre-codes."""
        linear, c = self.linear_encoder, x / self.input_scale - self.pre_bias
        pre = workspace.pre_codes(c, linear.weight, linear.bias)
        codes, values = self.select_stored(pre) if self.per_sample else self.select_active(pre)
        scale = self.code_scale
        return codes, values * (scale if scale.ndim == 0 else scale[codes.columns])

    def codes_of_stored(self, codes: SparseCodes, pre_codes: Tensor) -> Tensor:
        """Give the codes, shape (n_stored,), of the stored pre-codes; here they are active."""
        return pre_codes

    def forward_sparse(
        self,
        u: Tensor,
        workspace: Workspace,
        check: Callable[[int, int], None],
        target: Tensor | None = None,
    ) -> tuple[SparseCodes, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Give ``(codes, stored pre-codes, stored values, u_hats, error)`` in training.

        ``u`` is scaled input, and the target where there is no other; ``u_hats`` and ``error``
        are those of `reconstruct_stored`.

        Pre-codes are computed in the ``workspace``. ``check`` is called with the number of
        stored codes and of all, and may raise.
        """
        linear, bias = self.linear_encoder, self.pre_bias
        weight, select, gradients = linear.weight, self.select_stored, self.row_gradients
        given = u, bias, weight, linear.bias, select, workspace, gradients
        pre_codes, codes = encode(*given, self.row_sizes(u))
        check(len(pre_codes) - codes.n_spare, len(u) * codes.n_concepts)
        values = self.codes_of_stored(codes, pre_codes)
        return codes, pre_codes, values, *self.reconstruct_stored(codes, values, u, target)

    def reconstruct_stored(
        self, codes: SparseCodes, values: Tensor, u: Tensor, target: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give the reconstructions of stored codes that the loss needs, and the squared error.

        Each has shape (n, n_features), in scaled units. The last one is by all concepts, and
        need have no gradient: ``error``, the mean square of its difference from the target
        (None: the input ``u``), has one. Here it is the only one.
        """
        weights, bias, target = self.dictionary._weights, self.decoder_bias, _first(target, u)
        u_hat, error = reconstruct(codes, values, weights, bias, target, self.row_gradients)
        return (u_hat,), error

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(pre_codes, codes)`` in input units."""
        pre_codes, codes = self.encode_scaled(x / self.input_scale)
        return pre_codes * self.code_scale, codes * self.code_scale

    def decode(self, z: Tensor) -> Tensor:
        """Give the reconstruction (n, n_features) of codes (n, nb_concepts), in input units."""
        return z @ self.get_dictionary() + self.decoder_bias * self.output_scale

    def get_dictionary(self) -> Tensor:
        """Give the dictionary in output units, shape (nb_concepts, n_features)."""
        return self.dictionary.get_dictionary()

    def offset(self, x: Tensor) -> Tensor:
        """Give what is added to the decoded codes of rows x, in output units; here a constant."""
        return self.decoder_bias * self.output_scale

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore, after an optimiser step, what the step may have broken: unit norms."""
        if self.row_gradients is None or "dictionary" not in self.row_gradients.normalized:
            self.dictionary.project_()

    @torch.no_grad()
    def fold_normalization(self) -> SAEModule:
        """Give a copy that gives the same codes with an ``input_scale`` of 1, for export.

        Biases and thresholds of the copy are in input units. An encoder of the caller's
        need not be homogeneous, so its scale cannot be folded.
        """
        folded = copy.deepcopy(self)
        folded.scale_encoder(self.input_scale)
        folded.decoder_bias.mul_(self.input_scale)
        folded.center.mul_(self.input_scale)
        folded.max_distance.mul_(self.input_scale)
        folded.input_scale.fill_(1)
        folded.scale_thresholds(self.input_scale)
        return folded

    def scale_encoder(self, factor: Tensor) -> None:
        """Multiply the encoder's codes of ``factor * c`` by a factor against those of ``c``."""
        if not self.has_linear_encoder:
            raise ValueError(
                "fold_normalization needs the linear encoder (encoder_module=None); the input "
                "scale of another encoder cannot be folded into its weights. Keep the module "
                "as it is: encode and decode already take and give input units."
            )
        self.linear_encoder.bias.mul_(factor)

    def scale_thresholds(self, factor: Tensor) -> None:
        """Multiply what is compared with codes by a factor; here nothing is."""

    def l0_factor(self, pre_codes: Tensor, codes: SparseCodes | None = None) -> Tensor | None:
        """Give the factor of the thresholds that meets a target for L0 on a batch, if there is one.

        ``pre_codes`` are all, shape (n, nb_concepts), or with ``codes`` the stored ones.
        """
        return None

    def multiply_thresholds(self, factor: Tensor) -> None:
        """Multiply thresholds that concepts learn by a factor, and nothing else of them."""

    def lower_dead_thresholds(self, step: float) -> None:
        """Lower, by a step, the logarithms of the dead concepts' own thresholds."""

    def finish(self, batches: Iterable[Tensor], weight: float = 1.0) -> None:
        """Estimate, on scaled batches, what encoding needs beside the trained weights.

        ``weight``, from 0 to 1, is that of the new estimate against what is there already.
        """

    @torch.no_grad()
    def count_fired(self, fired: Tensor, n: int) -> None:
        """Update for how many samples each concept has been silent.

        ``fired``, shape (nb_concepts,), tells which were active in a batch of ``n`` samples.
        """
        self.samples_since_fired += n
        self.samples_since_fired.masked_fill_(fired, 0)

    def dead_pre_codes(self, u: Tensor, pre_codes: Tensor | None) -> Tensor:
        """Give the pre-codes of the dead concepts, shape (n, n_dead), for the auxiliary loss.

        Of the linear encoder they are computed anew, so that their gradient reaches the
        encoder's rows of dead concepts only, and not the decoder bias.
        """
        if not self.has_linear_encoder:
            assert pre_codes is not None
            return pre_codes.index_select(1, self.dead_concepts)
        return nn.functional.linear(*self.dead_encoder(u))

    def dead_encoder(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give what the linear encoder gets for scaled input, and its dead rows and biases."""
        linear = self.linear_encoder
        weight = self._dead_rows("encoder", linear.weight)
        if self.dead_places is None:
            bias = linear.bias.index_select(0, self.dead_concepts)
        else:
            none = self.dead_places == len(linear.weight)
            bias = linear.bias.index_select(0, self.dead_places.masked_fill(none, 0))
            bias = bias.masked_fill(none, -torch.inf)
        centered = None if self.row_gradients is None else self.row_gradients.centered
        return u - self.pre_bias.detach() if centered is None else centered, weight, bias

    def row_parameters(self) -> dict[str, Tensor]:
        """Give the matrices with a row per concept, by the name that `RowGradients` knows."""
        encoder = {"encoder": self.linear_encoder.weight} if self.has_linear_encoder else {}
        return encoder | {"dictionary": self.dictionary._weights}

    def dead_rows(self) -> Tensor:
        """Give the dictionary's rows of the dead concepts, shape (n_dead, n_features)."""
        return self.dictionary.normalized(self._dead_rows("dictionary", self.dictionary._weights))

    def _dead_rows(self, name: str, parameter: Tensor) -> Tensor:
        if self.row_gradients is None:
            return parameter.index_select(0, self.dead_concepts)
        dead = self.dead_concepts if self.dead_places is None else self.dead_places
        return self.row_gradients.take(name, parameter, dead)

    def is_repeatable(self, kind: str) -> bool:
        """Tell whether training steps on "stored" or "dense" codes can be repeated as they were."""
        return kind in vars(type(self)).get("repeats", ())

    @torch.no_grad()
    def find_dead(self, dead_after: int) -> None:
        """List the concepts that have been silent for ``dead_after`` samples or more."""
        self.dead_concepts = (self.samples_since_fired >= dead_after).nonzero()[:, 0]

    def revived_parameters(self) -> list[nn.Parameter]:
        """Give the parameters with a row per concept, which reviving and sorting write to."""
        linear = self.linear_encoder
        return [self.dictionary._weights, linear.weight, linear.bias]

    @torch.no_grad()
    def revive(self, directions: Tensor, encoder_share: float) -> None:
        """Start the dead concepts anew at directions of shape (n_dead, n_features).

        ``encoder_share`` is the norm of their encoder rows, relative to those of the others.
        """
        dead, linear = self.dead_concepts, self.linear_encoder
        unit = nn.functional.normalize(directions, dim=1)
        alive = torch.ones(len(linear.weight), dtype=torch.bool, device=dead.device)
        alive[dead] = False
        norms = linear.weight[alive].norm(dim=1)
        self.dictionary._weights[dead] = unit
        linear.weight[dead] = unit * encoder_share * (norms.mean() if len(norms) else 1.0)
        linear.bias[dead] = 0
        self.samples_since_fired[dead] = 0
        self.dead_concepts = dead[:0]


def _first(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def distance_cut(u: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """Move rows (n, d) that lie beyond a radius around a center onto it."""
    return scale_rows(u, torch.ones_like(radius), center, radius)


def mean_kth_largest(batches: Iterable[Tensor], k: float) -> Tensor:
    """Give a cut that ``k`` entries per row exceed, as the mean over batches of n rows.

    In each batch it lies halfway between the ``k * n``-th largest entry and the next, where
    negative and missing ones count as 0: were it one of the entries, rounding could decide
    about that one.

    Parameters
    ----------
    batches : iterable of Tensor of shape (n, n_columns)
        Batches count by their rows.
    k : float
        Entries per row, on average.

    Returns
    -------
    Tensor
        One number.
    """
    total, n_rows = torch.zeros(()), 0
    for batch in batches:
        total = total + len(batch) * kth_largest(batch.flatten(), k * len(batch))
        n_rows += len(batch)
    return total / n_rows


def kth_largest(entries: Tensor, k: float) -> Tensor:
    """Give a cut that ``k`` of entries, shape (n_entries,), exceed; see `mean_kth_largest`."""
    n_kept = max(1, round(k))
    if n_kept > len(entries):
        return entries.new_zeros(())
    largest = entries.topk(min(n_kept + 1, len(entries)), sorted=False).values
    n_smallest = 1 + (len(largest) > n_kept)
    return largest.topk(n_smallest, largest=False).values.clamp(min=0).sum() / 2


def _dictionary_arguments(params: dict[str, Any] | None) -> dict[str, Any]:
    params = dict(params or {})
    if params.get("initializer") is not None:
        params["initializer"] = torch.as_tensor(params["initializer"]).to(torch.get_default_dtype())
        params["initializer"] = params["initializer"].detach().cpu().numpy()
    return params
