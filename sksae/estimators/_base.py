"""BaseSAE: everything that the sparse autoencoders share as scikit-learn estimators."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import warnings
from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._device import resolve_device
from .._sklearn import fit_context, output_container
from ..activations._rows import rows_frame, rows_of, with_rows
from ..training import RowBatches
from ..training._data import SAMPLE_ROWS, PairedRows, RowSubset, SharedRows, sample_batches
from . import _parameters as parameters
from ._coding import Coder, CSRBuilder, decode_rows, explained_share
from ._input import check_codes, check_input, check_tensor, precision_of, split_rows
from ._nets import (
    draws_while_training,
    restore_state,
    resume_net,
    save_state,
    seeded,
    start_net,
    units_of,
)

_STOPPING_FRACTION = 0.1
_MANY_DEAD = 0.2
_FAR_FROM_TARGET = 0.1


class BaseSAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class of the sparse autoencoders.

    A sparse autoencoder writes each row of ``X`` as a sparse combination of dictionary
    rows: ``codes = transform(X)``, ``X ~ codes @ components_ + decoder_bias_``.

    A variant adds its parameters, a module and its loss terms: it defines ``__init__``
    (own parameters, then ``**shared``), ``_parameter_constraints``, `_module` and, if it
    has penalties, `_loss_terms`; losses of further reconstructions, which no warm-up and no
    target scales, go into `_reconstruction_terms`.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows. Above ``n_features`` the dictionary is overcomplete.
    encoder_module : str, torch.nn.Module or None, default=None
        Encoder from vectors to ``(pre_codes, codes)``: the name of one registered with
        overcomplete ("linear", "mlp_ln_1", ...) or a module, which is copied. None is a
        linear layer with ReLU that starts in the directions of the dictionary's rows. All of
        them see the input minus the decoder bias.
    encoder_init_norm : float, default=0.3
        Norm of the linear encoder's rows at the start. Below 1, that of the dictionary's
        rows, the encoder leaves its start sooner than the dictionary.
    dictionary_params : dict or None, default=None
        Arguments of overcomplete's dictionary layer: ``normalization`` ("l2" by default),
        ``initializer`` of shape (nb_concepts, n_features), ``use_multiplier``. With
        another normalisation or a multiplier, rows of ``components_`` need not have unit
        norm.
    criterion : str, SAELossClasses, class or callable, default="mse"
        The reconstruction loss: "mse", "dead_neurons_reanimation", a member of
        `sksae.losses.SAELossClasses`, a class to instantiate without arguments, or a
        callable ``(x, x_hat, pre_codes, codes, dictionary)``. Its tensors are in scaled
        units, see `sksae.losses`. The variant's own terms are added to it.
    nb_epochs : int, default=20
        Passes over the rows.
    batch_size : int, default=1024
        Rows per step.
    lr : float or "auto", default="auto"
        Learning rate, at the end of the warm-up. "auto" follows from the width, the batch
        size and the number of steps of this fit, see `sksae.training.auto_lr`: 5e-3 for
        4,096 concepts, 1,024 rows a batch and 1,500 steps. It is meant for Adam and its
        kin; give a rate with other optimizers.
    optimizer_class : class or callable or None, default=None
        Called with the parameters, ``lr=`` and ``optimizer_params``. None is
        ``torch.optim.Adam``.
    optimizer_params : dict or None, default=None
        Further arguments of the optimizer.
    scheduler_class : class, callable, "auto" or None, default="auto"
        Learning-rate scheduler, called with the optimizer and ``scheduler_params`` and
        stepped after each batch. "auto" is `sksae.training.WarmupDecay`: a warm-up over a
        twentieth of the steps of this fit (at most 1,000), then linear decay to zero; in
        `partial_fit`, whose end is open, a warm-up over 100 steps. None keeps the rate
        constant.
    scheduler_params : dict or None, default=None
        Further arguments of the scheduler; of "auto": ``warmup_steps``, ``decay_steps``.
    auxk_coefficient : float or "auto", default="auto"
        Weight of the auxiliary loss that revives dead concepts: they learn to explain
        what the others leave over, see `sksae.losses.auxk_loss` [1]_. "auto" is 1/32, and
        up to 1/8 in fits of less than 200 steps. 0 is without.
    k_aux : int or None, default=None
        Dead concepts used per row in it. None is half of ``n_features``.
    dead_after : int or "auto", default="auto"
        Rows without firing after which a concept counts as dead in training. "auto" is a
        fiftieth of the rows of this fit, epochs counted, but at least five batches and at
        most 10 million. For the auxiliary loss also at most eight batches, or the rows in
        which the average concept should fire 50 times if these are more, from the start or,
        where ``topk_start="auto"``, after the steps in which it looks for silent concepts.
    outlier_ratio : float or None, default=5.0
        Rows farther from the center of the data than this times the median distance, such
        as a causal model's first positions, do not count for the input scale and are moved
        to that distance in training, or they would outweigh all others. None leaves them.
    clip_grad : float or None, default=None
        Largest norm of the gradient of all parameters together.
    use_amp : bool, "bf16" or "fp16", default=False
        Half precision in the forward pass of training: True and "bf16" for bfloat16,
        "fp16" for float16 with a loss scaler. Weights and optimizer stay in full
        precision. The kernels for stored codes on CUDA devices take bfloat16 for the
        encoder's product alone.
    max_nan_fallbacks : int, default=5
        With ``use_amp``: a batch whose loss is not finite is recomputed in full
        precision; after this many of them the rest of the epoch runs in full precision.
        Of no use, and not asked, in steps on stored codes and on CUDA devices in bfloat16,
        whose range is that of full precision.
    monitoring : int or None, default=None
        Write loss, L0 and learning rate into ``history_`` every that many steps.
    verbose : int, default=0
        1 shows a progress bar.
    validation_fraction : float or None, default=None
        Share of the rows held out, whole texts where ``X`` knows its texts. The history
        then has ``valid_loss``, and its ``explained_variance`` and ``l0`` are those of
        the held-out rows.
    early_stopping : int or None, default=None
        Stop after that many epochs in which the explained variance of held-out rows did
        not rise, and restore the weights of the best epoch. Epochs count once sparsity has
        settled: after its warm-up or annealing, and with L0 near a ``target_l0``.
        ``validation_fraction=None`` is then 0.1. Without effect in `partial_fit`.
    callbacks : list or None, default=None
        skorch callbacks. A callback that ends training by raising KeyboardInterrupt in
        its own method, as skorch's EarlyStopping does, ends the fit normally.
    warm_start : bool, default=False
        Continue from the last fit instead of starting anew.
    device : str or torch.device, default="auto"
        Where to train and encode. "auto" is CUDA where there is a CUDA device.
    backend : {"auto", "reference", "cpu", "cuda"}, default="auto"
        How training steps and encoding are computed. "reference" is plain torch. "cpu" and
        "cuda" touch only the codes that are stored, apart from the encoder's product, with
        the same results, on that kind of device and whatever the sizes; what they do not
        serve (another criterion, encoder or dictionary, ``use_amp`` on the CPU) runs in
        plain torch, as ``backend_`` says. "auto" is one of the two where that is faster, and
        plain torch on other devices. On CUDA devices its steps in plain torch are recorded
        as a graph and, where the fit is long enough to make up for it, compiled by
        ``torch.compile``; those of "reference" never are. On processors with fast products
        of 8-bit integers, "cpu" finds the large pre-codes in those first, and computes only
        them in float32; "cuda" finds them in bfloat16.
    sparse_output : bool, default=True
        Whether `transform` gives CSR or an ndarray.
    random_state : int, RandomState instance or None, default=None
        An int makes a fit repeatable, bit by bit on one CPU. The global generators of
        torch are left as they were, and numpy's too unless this is None.

    Attributes
    ----------
    components_ : ndarray of shape (nb_concepts, n_features)
        The dictionary; rows have unit Euclidean norm.
    decoder_bias_ : ndarray of shape (n_features,)
        Subtracted before encoding, added after decoding. In input units.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where ``X`` had names.
    net_ : sksae.training.SAENet
        The skorch net.
    module_ : torch.nn.Module
        Its module, a subclass of the overcomplete class of this variant.
    history_ : skorch.history.History
        One entry per epoch: train_loss, valid_loss (NaN without held-out rows), both with
        penalties and auxiliary loss as they weigh at the time; explained_variance, l0,
        dead_fraction, dur (seconds).
    n_iter_ : int
        Epochs completed since the last start.
    n_steps_ : int
        Optimizer steps since the last start.
    l0_ : float
        Mean number of active concepts per row, measured after training on up to 8,192
        training rows.
    dead_fraction_ : float
        Share of the concepts that did not fire in the last ``n_samples`` training rows.
    backend_ : str
        What training ran on, and why.

    References
    ----------
    .. [1] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", section 2.4
       and appendix A, arXiv:2406.04093.
    """

    has_differentiable_concept_encoder = True
    has_differentiable_concept_decoder = True

    _parameter_constraints: dict = parameters.SHARED_CONSTRAINTS

    # Parameters that only some variants have.
    sparsity_warmup: float = 0
    k_anneal: float = 0
    topk_start: float | str = 0
    relative_start: float = 0
    sort_at: float = 0
    target_l0: float | None = None
    resample_dead = False

    # Parameters that the module of a variant is built around, beside the shared ones.
    _own_structure: tuple[str, ...] = ()
    # Whether what is decoded from the codes of X stands for X.
    _reconstructs_input = True

    def __init__(
        self,
        nb_concepts=1024,
        *,
        encoder_module=None,
        encoder_init_norm=0.3,
        dictionary_params=None,
        criterion="mse",
        nb_epochs=20,
        batch_size=1024,
        lr="auto",
        optimizer_class=None,
        optimizer_params=None,
        scheduler_class="auto",
        scheduler_params=None,
        auxk_coefficient="auto",
        k_aux=None,
        dead_after="auto",
        outlier_ratio=5.0,
        clip_grad=None,
        use_amp=False,
        max_nan_fallbacks=5,
        monitoring=None,
        verbose=0,
        validation_fraction=None,
        early_stopping=None,
        callbacks=None,
        warm_start=False,
        device="auto",
        backend="auto",
        sparse_output=True,
        random_state=None,
    ):
        self.nb_concepts = nb_concepts
        self.encoder_module = encoder_module
        self.encoder_init_norm = encoder_init_norm
        self.dictionary_params = dictionary_params
        self.criterion = criterion
        self.nb_epochs = nb_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer_class = optimizer_class
        self.optimizer_params = optimizer_params
        self.scheduler_class = scheduler_class
        self.scheduler_params = scheduler_params
        self.auxk_coefficient = auxk_coefficient
        self.k_aux = k_aux
        self.dead_after = dead_after
        self.outlier_ratio = outlier_ratio
        self.clip_grad = clip_grad
        self.use_amp = use_amp
        self.max_nan_fallbacks = max_nan_fallbacks
        self.monitoring = monitoring
        self.verbose = verbose
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.device = device
        self.backend = backend
        self.sparse_output = sparse_output
        self.random_state = random_state

    def __init_subclass__(cls, **kwargs):
        """Spell out ``**shared`` in the signature, for scikit-learn and for completion."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            _spell_out_shared(cls)

    # -- what a variant defines -----------------------------------------------------

    @abstractmethod
    def _module(self):
        """Give the module's class and its own parameters, as ``(class, dict)``."""

    def _module_from_rows(self, data):
        """Give parameters of the module that depend on the rows, as a dict; here none."""
        return {}

    def _loss_terms(self):
        """Give ``[(coefficient, term), ...]`` to add to the criterion, see `SAELoss`."""
        return []

    def _reconstruction_terms(self):
        """Give ``[(coefficient, term), ...]`` of further reconstructions, see `SAELoss`."""
        return []

    def _check_parameters(self):
        """Check what single constraints cannot; a variant extends it."""

    def _check_target(self, X, y, rows, *, reset):
        """Give the rows that X is to predict; here X itself is, and y is ignored.

        ``rows`` are the `Rows` of X, or None.
        """
        return None

    def _set_units(self, module, data):
        """Set the units of a fresh module from the rows that it will see."""
        module.set_units(*units_of(data, self.outlier_ratio))

    # -- fitting --------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Train on the rows of X.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            float32 and half precision are trained in float32, everything else in float64. A
            tensor that is on the CUDA device is read where it is.
        y : object
            Ignored, whatever its length.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data.
        FloatingPointError
            If the loss is not finite.

        Warns
        -----
        ConvergenceWarning
            If more than 20 % of the concepts are dead, or if L0 is more than 10 % from a
            ``target_l0``.
        """
        return self._fit(X, y)

    def _fit(self, X, y):
        with own_torch_context():
            exhaust(self._fit_steps(X, y))
        self._warn_of_what_failed(stacklevel=5)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Train for one pass over X, continuing from where the last call ended.

        The first call sets the input scale and the decoder bias from its rows. Weights,
        optimizer state and silence counters are kept.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
        y : object
            Ignored.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y)

    def _partial_fit(self, X, y):
        with own_torch_context():
            exhaust(self._undoable(X, y, None, self.__sklearn_is_fitted__()))
        return self

    def _fit_steps(self, X, y=None, shared=None):
        """Fit, giving way after each step.

        ``shared`` is a dict in which several SAEs that are fitted to the same X in step
        keep its rows.
        """
        continued = self.warm_start and self.__sklearn_is_fitted__()
        return self._undoable(X, y, self.nb_epochs, continued, shared)

    def _undoable(self, X, y, epochs, continued, shared=None):
        """Fit; when refused, failed or given up, leave the estimator as it was."""
        before = dict(vars(self))
        try:
            interrupt = yield from self._fit_rows(X, y, epochs, continued, shared)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        if interrupt is not None:
            raise interrupt

    def _fit_rows(self, X, y, epochs, continued, shared):
        """Fit; give the Ctrl-C that ended the training, if one did.

        ``epochs`` is None in `partial_fit`.
        """
        self._check_parameters()
        parameters.check_shared(self)
        device = resolve_device(self.device, type(self).__name__, ("cpu", "cuda", "mps"))
        parameters.check_backend(self, device)
        rows = rows_of(X)
        least = 1 if continued else 2
        X = check_input(self, X, reset=not continued, min_samples=least, on_device=True)
        y = self._check_target(X, y, rows, reset=not continued)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        # The seed of the first fit, so that a row held out once stays held out.
        parts = self._split(X, rows, self.net_.seed if continued else seed, epochs)
        dtype = self.net_.dtype if continued else precision_of(X)
        if parts is None:
            data, valid = _batches(X, y, device, dtype, shared), None
        else:
            data, valid = (_batches(X, y, device, dtype, None, part) for part in parts)
        del X, y, rows, parts  # what is converted anew need not stay while training
        saved = save_state(self.net_) if continued else None
        try:
            with seeded(seed, device):
                if continued:
                    resume_net(self, data, epochs)
                else:
                    self.net_ = start_net(self, data, epochs, seed)
            self.net_.valid_data = valid
            with seeded(seed, device) if draws_while_training(self) else contextlib.nullcontext():
                return (yield from self._train(data, epochs is None and continued))
        except BaseException:
            if continued:
                restore_state(self.net_, saved)
            raise

    def _split(self, X, rows, seed, epochs):
        """Give the numbers of the rows to train on and of those held out, if there are any."""
        fraction = self.validation_fraction
        if fraction is None and self.early_stopping is not None and epochs is not None:
            fraction = _STOPPING_FRACTION
        if fraction is None:
            return None
        groups = None if rows is None else rows.groups
        return split_rows(X.shape[0], groups, fraction, seed, type(self).__name__)

    def _train(self, data, is_chunk):
        interrupt = None
        try:
            yield from self.net_.steps(data)
        except KeyboardInterrupt as exc:
            interrupt = exc
        self._finish(data, min(1.0, len(data) / SAMPLE_ROWS) if is_chunk else 1.0)
        return interrupt

    def _finish(self, data, weight):
        """Leave the module ready to encode and measure what the fit achieved.

        ``weight`` is that of these rows in what is estimated beside the weights.
        """
        net, module = self.net_, self.module_
        net.valid_data = None
        net.drop_unfinished_epoch()
        net.optimizer_.zero_grad(set_to_none=True)
        batches = sample_batches(len(data), self.batch_size, net.seed)
        module.eval()
        module.finish((data.take(index) / module.input_scale for index in batches), weight)
        coder = Coder(module, self.backend)
        n_active = sum(torch.count_nonzero(coder.encode(data.take(i))[1]) for i in batches)
        self.l0_ = int(n_active) / sum(map(len, batches))
        silent = module.samples_since_fired >= len(data)
        self.dead_fraction_ = float(silent.double().mean())
        self.n_iter_ = len(net.history)
        self.n_steps_ = net.n_steps_
        self.backend_ = str(net.stored_steps_)

    def _warn_of_what_failed(self, stacklevel):
        """Warn of a fit that ended far from what was asked for."""
        owner = type(self).__name__
        if self.dead_fraction_ > _MANY_DEAD:
            warnings.warn(
                f"{self.dead_fraction_:.0%} of the {self._n_features_out} concepts of this {owner} "
                "fired in none of the last training rows, as many as a pass has. Lower "
                "nb_concepts, train on more rows or for more epochs, raise auxk_coefficient, or "
                "lower lr.",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        target = self.target_l0
        if target is not None and abs(self.l0_ / target - 1) > _FAR_FROM_TARGET:
            warnings.warn(
                f"The L0 of this {owner} is {self.l0_:.3g}, far from target_l0={target}. Train for "
                "more steps (more epochs, a smaller batch_size), or lower lr.",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )

    # -- codes ----------------------------------------------------------------------

    def transform(self, X):
        """Encode: give the activation of every concept in every row.

        A row's codes do not depend on the other rows.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)

        Returns
        -------
        codes : CSR matrix or ndarray of shape (n_samples, nb_concepts)
            In input units, in float32 for float32 and half precision and else in float64.
            Carries the ``.rows`` of ``X``, if it has them.
        """
        check_is_fitted(self)
        rows = rows_of(X)
        container = output_container(self)
        if container != "default" and self.sparse_output:
            raise ValueError(
                f"{type(self).__name__} gives sparse codes, which {container} output does not "
                "take. Set sparse_output=False, or set_output(transform='default')."
            )
        # Texts without any token have no rows, and no codes.
        least = 1 if rows is None else 0
        X = check_input(self, X, reset=False, min_samples=least, on_device=True)
        codes = self._encode_rows(X)
        if container == "pandas" and rows is not None:
            return rows_frame(codes, rows)
        return with_rows(codes, rows)

    def _encode_rows(self, X):
        dtype = np.float64 if precision_of(X) is torch.float64 else np.float32
        if not X.shape[0]:
            codes = np.empty((0, self._n_features_out), dtype=dtype)
            return sparse.csr_matrix(codes) if self.sparse_output else codes
        coder, data = self._coder(X)
        if self.sparse_output:
            out = CSRBuilder(self._n_features_out)
            for block in data.blocks(self._n_features_out):
                out.add(*coder.encode(block))
            return out.build()
        dense, start = np.empty((len(data), self._n_features_out), dtype=dtype), 0
        for block in data.blocks(self._n_features_out):
            dense[start : start + len(block)] = coder.encode_dense(block).cpu().numpy()
            start += len(block)
        return dense

    def _coder(self, X):
        """Give the module in the precision of X as a `Coder`, and X as batches."""
        dtype, module = precision_of(X), self.module_.eval()
        if module.decoder_bias.dtype != dtype:
            module = copy.deepcopy(module).to(dtype)
        return Coder(module, self.backend), RowBatches(X, self._device, dtype)

    def inverse_transform(self, Z):
        """Decode: ``Z @ components_ + decoder_bias_``.

        Parameters
        ----------
        Z : array-like, sparse matrix or torch.Tensor of shape (n_samples, nb_concepts)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            float64 for float64 codes and else float32. Carries the ``.rows`` of ``Z``,
            if it has them.
        """
        return self._decode_rows(Z)

    def _decode_rows(self, Z, n_prefix=None):
        check_is_fitted(self)
        rows = rows_of(Z)
        Z = check_codes(self, Z, self._n_features_out)
        Z = Z if n_prefix is None else Z[:, :n_prefix]
        X = decode_rows(Z, self.components_[:n_prefix].astype(Z.dtype, copy=False))
        X += self.decoder_bias_.astype(Z.dtype, copy=False)
        return with_rows(X, rows)

    def score(self, X, y=None):
        """Share of the variance of X that its reconstruction explains. Higher is better.

        ``1 - sum (X - X_hat)^2 / sum (X - mean)^2``, the mean taken per feature and the
        sums over all entries; see `sksae.metrics.explained_variance`.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
        y : object
            Ignored.

        Returns
        -------
        float
            For constant ``X``: 1 if it is reconstructed exactly, else 0.
        """
        check_is_fitted(self)
        coder, data = self._coder(check_input(self, X, reset=False, on_device=True))
        return explained_share(coder, data, data)

    # -- tensors --------------------------------------------------------------------

    def encode(self, x):
        """Encode a tensor, with gradients; faster under ``torch.no_grad``.

        Parameters
        ----------
        x : torch.Tensor of shape (n, n_features)
            On any device and of any float dtype; the computation runs on the module's
            device and in its precision.

        Returns
        -------
        torch.Tensor of shape (n, nb_concepts)
            Codes in input units, on the device of ``x``.

        Raises
        ------
        TypeError
            If it is no tensor.
        ValueError
            If it has not two dimensions, or another width.
        """
        check_is_fitted(self)
        bias = self.module_.decoder_bias
        owner, width = type(self).__name__, self.n_features_in_
        check_tensor(x, "x", width, owner)
        if x.ndim != 2:
            raise ValueError(
                f"{owner} encodes x of shape (n, {width}), got shape {tuple(x.shape)}. Give it one "
                f"row per token: x.reshape(-1, {width})."
            )
        module, given = self.module_.eval(), x.to(bias.device, bias.dtype)
        # NaN goes on into the codes, and half precision is computed in as it is.
        plain = torch.is_grad_enabled() or given.dtype not in (torch.float32, torch.float64)
        total = None if plain else given.sum()
        if plain or (given.device.type == "cpu" and not math.isfinite(total)):
            return module.encode(given)[1].to(x.device)
        codes = Coder(module, self.backend).encode_dense(given)
        # Other devices are asked at last, as they stand still from a question to what comes next.
        return (codes if math.isfinite(total) else module.encode(given)[1]).to(x.device)

    def decode(self, z):
        """Decode a tensor of codes, with gradients.

        Parameters
        ----------
        z : torch.Tensor of shape (n, nb_concepts)

        Returns
        -------
        torch.Tensor of shape (n, n_features)
            On the device of ``z``.
        """
        check_is_fitted(self)
        bias = self.module_.decoder_bias
        check_tensor(z, "z", self._n_features_out, type(self).__name__)
        return self.module_.eval().decode(z.to(bias.device, bias.dtype)).to(z.device)

    def get_dictionary(self):
        """Give the dictionary as a tensor.

        Returns
        -------
        torch.Tensor of shape (nb_concepts, n_features)
            On the module's device; ``components_`` is the same as an array.
        """
        check_is_fitted(self)
        return self.module_.get_dictionary().detach()

    # -- fitted attributes ----------------------------------------------------------

    if not TYPE_CHECKING:  # for which every name would be an attribute then

        def __getattr__(self, name):
            """Name what is missing, where it is the fit."""
            by_fit = name.endswith("_") and not name.startswith("_")
            if by_fit and not self.__sklearn_is_fitted__():
                owner = type(self).__name__
                raise NotFittedError(f"This {owner} has no '{name}' yet: call fit first.")
            return object.__getattribute__(self, name)

    @property
    def module_(self):
        """The torch module."""
        return self.net_.module_

    @property
    def history_(self):
        """The skorch history."""
        return self.net_.history

    @property
    def components_(self):
        """The dictionary, shape (nb_concepts, n_features)."""
        return _array(self.module_.get_dictionary())

    @property
    def decoder_bias_(self):
        """The decoder bias in input units, shape (n_features,)."""
        return _array(self.module_.decoder_bias * self.module_.output_scale)

    @property
    def _n_features_out(self):
        return self.module_.nb_concepts

    @property
    def _device(self):
        return self.module_.decoder_bias.device

    def __sklearn_is_fitted__(self):
        """Tell whether there is a trained module."""
        return "net_" in vars(self)

    def __sklearn_tags__(self):
        """Give the scikit-learn tags."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __reduce__(self):
        """Pickle so that overcomplete's classes can be found when unpickling."""
        from ..modules._overcomplete import rebuild_estimator

        return rebuild_estimator, (type(self),), self.__getstate__()


@contextlib.contextmanager
def own_torch_context():
    """Train as if the caller were in no autocast, no_grad or inference_mode block."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def exhaust(steps):
    """Run a fit that gives way after each step to its end."""
    for _ in steps:
        pass


def _batches(X, y, device, dtype, shared, part=None):
    inputs = _rows("X", X, device, dtype, shared, part)
    return inputs if y is None else PairedRows(inputs, _rows("y", y, device, dtype, shared, part))


def _rows(name, X, device, dtype, shared, part):
    if part is not None:
        if isinstance(X, torch.Tensor):  # a copy might not fit on the device
            return RowSubset(RowBatches(X, device, dtype), part)
        return RowBatches(X[part], device, dtype)
    if shared is None:
        return RowBatches(X, device, dtype)
    if (name, device, dtype) not in shared:
        shared[name, device, dtype] = SharedRows(X, device, dtype)
    return shared[name, device, dtype]


def _array(tensor):
    return tensor.detach().cpu().numpy().copy()


def _spell_out_shared(cls):
    """Replace ``**shared`` in the signature of ``cls.__init__`` by the base's parameters."""
    own = inspect.signature(cls.__init__)
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(kept) == len(own.parameters):
        return
    names = {p.name for p in kept}
    inherited = inspect.signature(super(cls, cls).__init__).parameters.values()
    shared = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in inherited if p.name not in names
    ]
    shared = [p for p in shared if p.name != "self"]
    cls.__init__.__signature__ = own.replace(parameters=kept + shared)
