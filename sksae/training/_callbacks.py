"""What acts at the ends of epochs: resampling of dead concepts, early stopping."""

from __future__ import annotations

import copy

import torch
from skorch.callbacks import Callback, EarlyStopping

from ._order import moments
from ._sparsity import sparsity_is_settled

_ROWS = 8192
_ENCODER_SHARE = 0.2


class ResampleDead(Callback):
    """Give dead concepts a new start at badly reconstructed rows, at the end of an epoch.

    Of up to 8,192 training rows, one per concept that has been silent for ``dead_after``
    samples is drawn with probability proportional to its squared loss. Its direction from
    the decoder bias becomes the concept's dictionary row, and its encoder row at a fifth
    of the mean norm of those of live concepts; the encoder bias is zeroed and the
    optimizer's moments are forgotten. Only in the first half of the epochs, so that what
    is revived can still be learnt. Source: Bricken et al. (2023), "Towards
    monosemanticity", Transformer Circuits Thread, appendix on neuron resampling.
    """

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Count the epochs of this fit."""
        self.epochs_ = 0

    @torch.no_grad()
    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Resample, if the epoch lies in the first half of the fit."""
        self.epochs_ += 1
        if 2 * self.epochs_ > net.max_epochs:
            return
        module = net.module_
        module.find_dead(net.dead_after)
        dead = module.dead_concepts
        if not len(dead):
            return
        index = torch.randperm(len(dataset_train), generator=net.generator_)[:_ROWS]
        u = dataset_train.take(index) / module.input_scale
        u = u[(module.pull_in(u) == u).all(dim=1)]  # rows of extreme norm would win every draw
        u_hat = module.forward_scaled(u)[2]
        weight = (u - u_hat).square().sum(dim=1).double().cpu().square()
        n_drawn = min(len(dead), int((weight > 0).sum()))  # each row at most once
        if not n_drawn or not torch.isfinite(weight).all():
            return
        module.dead_concepts = dead[:n_drawn]
        drawn = weight.multinomial(n_drawn, generator=net.generator_).to(u.device)
        module.revive(u[drawn] - module.decoder_bias, _ENCODER_SHARE)
        for parameter in module.revived_parameters():
            for rows in moments(net.optimizer_, parameter):
                rows[dead[:n_drawn]] = 0


class BestEpoch(EarlyStopping):
    """Stop after some epochs without better held-out explained variance; restore the best.

    Epochs count from when sparsity has settled: before, the least sparse one would be best.
    The weights of the best epoch are restored, whether the fit was stopped or not, and the
    state of the criterion with them.

    Parameters
    ----------
    patience : int
        Number of epochs.
    """

    def __init__(self, patience):
        super().__init__(
            monitor="explained_variance",
            lower_is_better=False,
            patience=patience,
            threshold=0,
            threshold_mode="abs",
            load_best=True,
        )

    def on_epoch_end(self, net, **kwargs):
        """Compare the epoch with the best so far."""
        if not sparsity_is_settled(net):
            return
        super().on_epoch_end(net, **kwargs)
        if self.best_epoch_ == net.history[-1, "epoch"]:
            self.best_criterion_ = copy.deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net, **kwargs):
        """Restore the best epoch."""
        if self.best_model_weights_ is not None:
            super().on_train_end(net, **kwargs)
            net.criterion_.load_state_dict(self.best_criterion_)
        self.best_model_weights_ = self.best_criterion_ = None  # not needed any longer
