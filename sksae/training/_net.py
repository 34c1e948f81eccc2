"""The skorch net behind every SAE: its training step and its epoch loop.

skorch's own loop reads the loss from the device after every batch, keeps a dictionary
per batch and swallows Ctrl-C. Here an epoch's totals stay on the device until its end,
batch entries are written only when ``monitoring`` or a callback asks for them, and
Ctrl-C is raised again.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer
from skorch.dataset import unpack_data
from skorch.utils import TeeGenerator

from ..kernels import RowGradients, own_threads, steps_by_rows
from ..losses import check_loss
from ._data import BatchIterator, RowBatches
from ._dense import dense_step, l0_factor
from ._order import sort_concepts
from ._progress import ProgressBar
from ._recorded import RecordedSteps
from ._schedule import MAX_LR
from ._sparsity import set_sparsity
from ._stored import StoredSteps, TooManyStored
from ._totals import EpochTotals, not_finite

_DEAD_EVERY = 16


class _StopTraining(Exception):
    """A callback asked for the end of training, as skorch's EarlyStopping does."""


class SAENet(NeuralNet):
    """A skorch net that trains an `SAEModule` to reconstruct its input.

    Beside skorch's parameters it takes those below. ``predict`` gives reconstructions.

    Parameters
    ----------
    *args : object
        As in ``skorch.NeuralNet``.
    dtype : torch.dtype
        Of the module and of the batches.
    seed : int
        Of the generator that shuffles the rows.
    valid_data : RowBatches, optional
        Held-out rows.
    clip_grad : float, optional
        Largest norm of the gradient of all parameters together.
    amp_dtype : torch.dtype, optional
        torch.bfloat16 or torch.float16: autocast, for float16 with a loss scaler.
    max_nan_fallbacks : int
        Batches of an epoch recomputed in full precision after a loss that is not finite,
        before the rest of the epoch runs in full precision.
    monitoring : int, optional
        Write batch metrics into the history every ``monitoring`` steps.
    scheduler : callable, optional
        Optimizer -> learning-rate scheduler, stepped after each batch.
    name : str
        Shown by the progress bar.
    dead_after : int, optional
        Samples without firing after which a concept is listed as dead.
    revive_after : int, optional
        The same, once ``silence_watch`` is over. By default as before.
    sparsity_warmup : int
        Steps over which the penalties grow to their full weight.
    k_anneal : int
        Steps over which the module's k falls to ``top_k``, from four times that.
    topk_start : int
        Steps at the start in which each sample keeps its own largest codes, before all share
        them; penalties and the target for L0 wait until then.
    silence_watch : int
        Steps in and after which too many silent concepts make the weights start anew, with each
        sample keeping its own codes from then on, see `sksae.training._sparsity`.
    relative_start : int
        Steps over which the norms of samples come to count where samples share codes or have
        codes above thresholds.
    sort_at : int, optional
        Steps after which the concepts are sorted, see `sort_concepts`.
    l0_time : float
        Steps in which a target for L0 corrects the scale of the penalties, see `TargetL0`.
    backend : str
        "auto", "reference", "cpu" or "cuda": whether steps run on stored codes only, see
        `sksae.kernels`.
    **kwargs : object
        As in ``skorch.NeuralNet``.
    """

    _recorded = None

    def __init__(
        self,
        *args,
        dtype=torch.float32,
        seed=0,
        valid_data=None,
        clip_grad=None,
        amp_dtype=None,
        max_nan_fallbacks=5,
        monitoring=None,
        scheduler=None,
        name="SAE",
        dead_after=None,
        revive_after=None,
        sparsity_warmup=0,
        k_anneal=0,
        topk_start=0,
        silence_watch=0,
        relative_start=0,
        sort_at=None,
        l0_time=100.0,
        backend="auto",
        **kwargs,
    ):
        self.dtype = dtype
        self.seed = seed
        self.valid_data = valid_data
        self.clip_grad = clip_grad
        self.amp_dtype = amp_dtype
        self.max_nan_fallbacks = max_nan_fallbacks
        self.monitoring = monitoring
        self.scheduler = scheduler
        self.name = name
        self.dead_after = dead_after
        self.revive_after = revive_after
        self.sparsity_warmup = sparsity_warmup
        self.k_anneal = k_anneal
        self.topk_start = topk_start
        self.silence_watch = silence_watch
        self.relative_start = relative_start
        self.sort_at = sort_at
        self.l0_time = l0_time
        self.backend = backend
        super().__init__(*args, **kwargs)

    # -- set-up ---------------------------------------------------------------------

    @property
    def _default_callbacks(self):
        bar = [("progress_bar", ProgressBar())] if self.verbose else []
        return [("epoch_timer", EpochTimer()), *bar]

    def initialize_module(self):
        """Build the module, in the net's precision."""
        super().initialize_module()
        self.module_.to(self.dtype)
        return self

    def initialize_optimizer(self, triggered_directly=None):
        """Build the optimizer and what is stepped with it."""
        super().initialize_optimizer(triggered_directly)
        self.n_steps_, self.start_ = 0, None
        self.optimizer_scheduler_ = self.scheduler(self.optimizer_) if self.scheduler else None
        uses_scaler = self.amp_dtype is torch.float16
        device = torch.device(self.device).type
        self.optimizer_scaler_ = torch.amp.GradScaler(device) if uses_scaler else None
        return self

    def get_dataset(self, X, y=None):
        """Give the rows of ``X`` as `RowBatches`."""
        return X if isinstance(X, RowBatches) else RowBatches(X, self._device(), self.dtype)

    def get_split_datasets(self, X, y=None, **fit_params):
        """Give the training rows and the held-out rows (or None)."""
        return self.get_dataset(X), self.valid_data

    def get_iterator(self, dataset, training=False):
        """Give batches of rows: shuffled for training, else in order."""
        generator = None
        if training:
            if not hasattr(self, "generator_"):
                self.generator_ = torch.Generator().manual_seed(self.seed)
            generator = self.generator_
        ahead = training and self._device().type != "cpu"
        return BatchIterator(dataset, self.batch_size, generator, ahead)

    def _device(self):
        return next(self.module_.parameters()).device

    # -- epochs ---------------------------------------------------------------------

    def partial_fit(self, X, y=None, classes=None):
        """Train for ``max_epochs`` more epochs; Ctrl-C is raised again at the end."""
        for _ in self.steps(X):
            pass
        return self

    def steps(self, X):
        """Train like `partial_fit`, giving way after each step."""
        if not self.initialized_:
            self.initialize()
        self.stored_steps_ = StoredSteps(self)
        # Nothing but the optimizer is to look at the gradients or to change the weights.
        hooks = ("on_batch_begin", "on_batch_end", "on_grad_computed")
        looked_at = self.clip_grad is not None or self._overridden_by_callbacks(*hooks)
        scaled = self.optimizer_scaler_ is not None
        self._steps_by_rows = not (looked_at or scaled) and steps_by_rows(self.optimizer_)
        repeats = self._steps_by_rows and _repeats_on(self._device())
        self._recorded = RecordedSteps(self, X.shape[0]) if repeats else None
        self._sum_squares = {}  # of the rows of each pass, which come again in each epoch
        self.notify("on_train_begin", X=X, y=None)
        try:
            with contextlib.suppress(_StopTraining):
                yield from self._epochs(*self.get_split_datasets(X))
        finally:
            self._recorded = None
            self.stored_steps_.close()
            self.notify("on_train_end", X=X, y=None)

    def _epochs(self, train, valid):
        data = {"dataset_train": train, "dataset_valid": valid}
        batches = self.get_iterator(train, training=True)
        held_out = None if valid is None else self.get_iterator(valid)
        for _ in range(self.max_epochs):
            self.notify("on_epoch_begin", **data)
            yield from self._epoch_steps(batches, True, "train", self.train_step)
            self.run_single_epoch(held_out, False, "valid", self.validation_step)
            self.notify("on_epoch_end", **data)

    def notify(self, method_name, **kwargs):
        """Call the callbacks, telling their request to stop from a real Ctrl-C."""
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as exc:
            if _raised_by_callback(exc, self.callbacks_, method_name):
                raise _StopTraining from None
            raise

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Run one pass over the batches and write its totals into the history."""
        for _ in self._epoch_steps(iterator, training, prefix, step_fn):
            pass

    def _epoch_steps(self, iterator, training, prefix, step_fn):
        if iterator is None:
            self.history.record(f"{prefix}_loss", float("nan"))
            self.history.record(f"{prefix}_loss_best", False)
            return
        # At the start of a fit a module may see other rows than those that come again.
        start = self.module_.has_start_rows and self.n_steps_ < self.relative_start
        known = None if training and start else self._sum_squares.get(prefix)
        totals = EpochTotals(self.module_, self._device(), known)
        self._set_training(training)
        self.stored_steps_.forget()
        self._nan_fallbacks, self._full_precision = 0, False
        hooked = self._overridden_by_callbacks("on_batch_begin", "on_batch_end")
        for batch in iterator:
            if hooked:
                self.notify("on_batch_begin", batch=batch, training=training)
            if training:
                set_sparsity(self, iterator.data)
                if self.n_steps_ == self.sort_at and self.module_.can_be_sorted:
                    sort_concepts(self, iterator.data)
            step = step_fn(batch)
            totals.add(step)
            self._record_batch(step, batch, training, prefix, hooked)
            yield
        self._record_epoch(totals, prefix, training)
        if training and start:
            del self._sum_squares[prefix]

    def _record_batch(self, step, batch, training, prefix, hooked):
        every = self.monitoring
        monitored = training and every and self.n_steps_ % every == 0
        if hooked or monitored:
            if not hooked:
                self.history.new_batch()
            self.history.record_batch(f"{prefix}_loss", step["loss"].item())
            self.history.record_batch(f"{prefix}_batch_size", len(batch[0]))
        if monitored:
            self.history.record_batch("step", self.n_steps_)
            self.history.record_batch("l0", step["n_active"].item() / len(step["target"]))
            self.history.record_batch("lr", step["lr"])
        if hooked:
            y_pred = step["y_pred"] * self.module_.output_scale
            self.notify(
                "on_batch_end", batch=batch, training=training, loss=step["loss"], y_pred=y_pred
            )
        for _, callback in self.callbacks_ if training else ():
            if isinstance(callback, ProgressBar):
                callback.update()

    def _record_epoch(self, totals, prefix, training):
        """Write the epoch keys; those of held-out rows replace those of training."""
        values = totals.read(self.n_steps_ if training else None)
        self._sum_squares[prefix] = values.sum_squares
        best = min((e.get(f"{prefix}_loss", math.inf) for e in self.history[:-1]), default=math.inf)
        self.history.record(f"{prefix}_loss", values.loss)
        self.history.record(f"{prefix}_loss_best", values.loss < best)
        if not self.history[-1]["batches"]:  # skorch's Checkpoint asks for the last batch
            self.history.new_batch()
        self.history.record(f"{prefix}_batch_count", values.n_batches)
        self.history.record("explained_variance", values.explained_variance)
        self.history.record("l0", values.l0)
        if training:
            self.history.record("dead_fraction", values.dead_fraction)

    def drop_unfinished_epoch(self):
        """Take an interrupted epoch out of the history."""
        if len(self.history) and "dur" not in self.history[-1]:
            del self.history[-1]

    def _overridden_by_callbacks(self, *names):
        return any(
            getattr(type(callback), name) is not getattr(Callback, name)
            for _, callback in self.callbacks_
            for name in names
        )

    # -- steps ----------------------------------------------------------------------

    def train_step(self, batch, **fit_params):
        """Take one optimisation step; give its loss, activity and reconstruction (scaled)."""
        try:
            done = self._step_by_rows(batch) if self._steps_by_rows else self._plain_step(batch)
        finally:
            self.module_.row_gradients = None
        self._after_step(done)
        done["lr"] = self.optimizer_.param_groups[0]["lr"]
        if self.optimizer_scheduler_ is not None:
            self.optimizer_scheduler_.step()
        self.n_steps_ += 1
        return done

    def _after_step(self, step):
        """Do what follows from some steps only, or from what not all of them compute."""
        # Listing the dead reads the device, so elsewhere than on the CPU not at every step.
        if self.dead_after and (self.device == "cpu" or self.n_steps_ % _DEAD_EVERY == 0):
            watched = self.n_steps_ < self.silence_watch or self.revive_after is None
            self.module_.find_dead(self.dead_after if watched else self.revive_after)
        if self.criterion_.auxk_coefficient and len(self.module_.dead_concepts):
            # What Adam would do to a number whose gradient never changes; rates of other optimizers
            # have other units.
            rate = self.optimizer_.param_groups[0]["lr"]
            self.module_.lower_dead_thresholds(min(rate, MAX_LR))

    def _plain_step(self, batch):
        """Step with gradients of all parameters."""
        done = {}

        def closure():
            self._zero_grad_optimizer()
            done.update(self.train_step_single(batch))
            self._finish_gradients(batch)
            return done["loss"]

        if self.optimizer_scaler_ is None:
            self.optimizer_.step(closure)
        else:
            self._scaled_step(closure)
        self._finish_step(done)
        return done

    def _step_by_rows(self, batch):
        """Step without gradients of matrices, where the backward pass leaves them as sums."""
        x, y = unpack_data(batch)
        done = None if self._recorded is None else self._recorded.step(x, y)
        if done is None:
            done = self.take_step(x, y)
            may_be_stored = self.stored_steps_.obstacle is None
            if self._recorded is not None and may_be_stored and "error" not in done:
                self._recorded.interrupt()
        return done

    def take_step(self, x, y, numbers=None):
        """Do all that `_step_by_rows` does on the device.

        Parameters
        ----------
        x, y : Tensor
            Rows, and what is to be made of them.
        numbers : Tensor, optional
            Where to read those of the optimizer, see `sksae.kernels.adam_numbers`.

        Returns
        -------
        dict of Tensor
            As of `train_step_single`.
        """
        module = self.module_
        gradients = RowGradients(workspace=self.stored_steps_.workspace, numbers=numbers)
        module.row_gradients = gradients
        self._zero_grad_optimizer()
        with torch.enable_grad():
            done = self.train_step_single((x, y))
        with own_threads():
            gradients.step(module.row_parameters(), self.optimizer_)
            if numbers is None:
                self.optimizer_.step()  # with what has a gradient
        self._finish_step(done)
        return done

    def _finish_step(self, step):
        """Do what follows from each step, without reading the device."""
        module = self.module_
        module.after_step()
        module.count_fired(step["fired"], len(step["target"]))
        if "l0_factor" in step:
            module.multiply_thresholds(step["l0_factor"])
        if not module.per_sample:
            self.criterion_.after_step(step["n_active"] / len(step["target"]), self.l0_time)

    def _scaled_step(self, closure):
        """Step with scaled gradients; if they overflow, again in full precision."""
        scaler, before = self.optimizer_scaler_, self.optimizer_scaler_.get_scale()
        closure()
        scaler.step(self.optimizer_)
        scaler.update()
        if scaler.get_scale() >= before:
            return
        self._count_nan_fallback()
        full_precision, self._full_precision = self._full_precision, True
        try:
            self.optimizer_scaler_ = None
            self.optimizer_.step(closure)
        finally:
            self.optimizer_scaler_, self._full_precision = scaler, full_precision

    def train_step_single(self, batch, **fit_params):
        """Compute loss and gradients of one batch, in full precision if half precision fails."""
        with own_threads():
            u, target = self._scaled(*unpack_data(batch), pull_in=True)
            step = self._forward_stored(u, target)
            if step is not None:
                self._backward(step["loss"])
        if step is None:
            half = self.amp_dtype is not None and not self._full_precision
            step = self._forward(u, target, self.amp_dtype if half else None)
            # A device would stand still while it is asked; bfloat16 has the range of float32.
            asked = u.device.type != "cuda" or self.amp_dtype is torch.float16
            if half and asked and not torch.isfinite(step["loss"]):
                step = self._forward(u, target, None)
                self._count_nan_fallback()
            self._backward(step["loss"])
        return {key: value.detach() for key, value in step.items()}

    def _backward(self, loss):
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise not_finite(self.n_steps_)  # elsewhere, asking would stall every step
        if self.optimizer_scaler_ is not None:
            loss = self.optimizer_scaler_.scale(loss)
        loss.backward()

    def validation_step(self, batch, **fit_params):
        """Compute loss, activity and reconstruction of one held-out batch."""
        with torch.no_grad():
            return self._forward(*self._scaled(*unpack_data(batch)), None)

    def evaluation_step(self, batch, training=False):
        """Give the reconstruction of one batch, in output units."""
        self.check_is_fitted()
        x, _ = unpack_data(batch)
        with torch.set_grad_enabled(training):
            self._set_training(training)
            return self.module_(x)[-1]

    def _scaled(self, x, y, pull_in=False):
        """Give input and target in scaled units; an autoencoder's target is its input."""
        module = self.module_
        u = module.start_rows(module.scale_rows(x)) if pull_in else x / module.input_scale
        if y is x:
            return u, u
        target = y / module.output_scale
        return u, module.pull_in_target(target) if pull_in else target

    def _forward(self, u, target, autocast_dtype):
        # Without its cache, which is emptied where no other such block is around this one: in a
        # fit there is one, and rounded weights of earlier steps would be used.
        half = {"dtype": autocast_dtype, "enabled": autocast_dtype is not None}
        compute = dense_step if self._recorded is None else self._recorded.dense_step
        with torch.autocast(u.device.type, **half, cache_enabled=False):
            step, *given = compute(self.module_, self.criterion_, u, target)
            auxk = self.criterion_.of_dead(self.module_, target, step["y_pred"], *given, u)
        return step | {"loss": check_loss(step["loss"]) + auxk, "target": target}

    def _forward_stored(self, u, target):
        """Compute a step on stored codes; give None if this one is to run dense."""
        stored, module = self.stored_steps_, self.module_
        workspace = stored.next_workspace(len(u), module)
        if workspace is None:
            return None
        try:
            codes, pre_codes, values, u_hats, error = module.forward_sparse(
                u, workspace, stored.check, target
            )
        except TooManyStored:
            return None
        given = (module, target, u_hats, error, codes, pre_codes, values, u)
        half = {"dtype": stored.precision, "enabled": stored.precision is not None}
        with torch.autocast(u.device.type, **half, cache_enabled=False):
            loss = self.criterion_.sparse(*given)
        active = {"n_active": codes.n_active(values), "fired": codes.fired(values)}
        step = {"loss": loss, "y_pred": u_hats[-1], "target": target, "error": error}
        return step | active | l0_factor(module, self.criterion_, pre_codes, codes)

    def _count_nan_fallback(self):
        self._nan_fallbacks += 1
        if self._nan_fallbacks >= self.max_nan_fallbacks and not self._full_precision:
            self._full_precision = True
            warnings.warn(
                f"The loss was not finite in half precision for {self._nan_fallbacks} batches of "
                "this epoch; the rest of it runs in full precision. Set use_amp=False, or "
                "lower lr.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _finish_gradients(self, batch):
        if self.optimizer_scaler_ is not None:
            self.optimizer_scaler_.unscale_(self.optimizer_)
        if self.clip_grad is not None:
            learnt = [parameter for _, parameter in self.get_all_learnable_params()]
            torch.nn.utils.clip_grad_norm_(learnt, self.clip_grad)
        if self._overridden_by_callbacks("on_grad_computed"):
            self.notify(
                "on_grad_computed",
                named_parameters=TeeGenerator(self.get_all_learnable_params()),
                batch=batch,
                training=True,
            )

    # -- pickling -------------------------------------------------------------------

    def __getstate__(self):
        state = super().__getstate__()
        state["valid_data"] = None  # the caller's rows do not belong into a pickle
        state["_recorded"] = None
        if "generator_" in state:
            state["generator_"] = state["generator_"].get_state().numpy()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "generator_" in vars(self):
            generator = torch.Generator()
            generator.set_state(torch.from_numpy(self.generator_.copy()))
            vars(self)["generator_"] = generator


def _repeats_on(device):
    """Tell whether a device can repeat steps from a record."""
    return device.type == "cuda"


def _raised_by_callback(exc, callbacks, method_name):
    """Tell whether the innermost frame of a traceback is a callback's own method.

    skorch's callbacks end training by raising KeyboardInterrupt there; a Ctrl-C lands,
    but for a vanishing window, in some other frame.
    """
    traceback = exc.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    classes = [cls for _, callback in callbacks for cls in type(callback).__mro__]
    hooks = [inspect.unwrap(vars(cls)[method_name]) for cls in classes if method_name in vars(cls)]
    return traceback.tb_frame.f_code in [getattr(hook, "__code__", None) for hook in hooks]
