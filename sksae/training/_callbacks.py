"""What acts at the ends of epochs: resampling of dead concepts, early stopping."""

from __future__ import annotations

import torch
from skorch.callbacks import Callback, EarlyStopping

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
        u_hat = module.forward_scaled(u)[2]
        loss = (u - u_hat).square().sum(dim=1).double().cpu()
        if not torch.isfinite(loss).all() or not (loss > 0).any():
            return
        drawn = loss.square().multinomial(len(dead), replacement=True, generator=net.generator_)
        module.revive(u[drawn.to(u.device)] - module.decoder_bias, _ENCODER_SHARE)
        _forget(net.optimizer_, module.revived_parameters(), dead)


def _forget(optimizer, parameters, rows):
    """Zero the optimizer's moments of some rows of some parameters."""
    for parameter in parameters:
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value[rows] = 0


def early_stopping(patience):
    """Stop after that many epochs without better held-out explained variance.

    The weights of the best epoch are restored, whether the fit was stopped or not.
    """
    return EarlyStopping(
        monitor="explained_variance",
        lower_is_better=False,
        patience=patience,
        threshold=0,
        threshold_mode="abs",
        load_best=True,
    )
