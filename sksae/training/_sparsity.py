"""What the sparsity of a training step depends on beside the weights.

Where samples share codes, or thresholds decide, concepts that are ahead may take all codes, and
those that fall silent learn nothing: of many independent features that are equally frequent most
are then never found. Concepts that each sample chooses for itself stay in the game.
"""

from __future__ import annotations

from ._data import BatchIterator, RowBatches, sample_batches
from ._schedule import ramp

_K_START = 4
_NEAR_TARGET = 0.1
# How often the average concept fires while another one is silent, and steps between two looks.
_FIRINGS, _LOOK_EVERY = 1000, 16


def set_sparsity(net, data: RowBatches) -> None:
    """Set the sparsity of the coming step.

    While ``net.topk_start`` steps last, each sample keeps its own codes and no penalty counts,
    which then grows from nothing. When they end, thresholds start at what keeps as many codes
    of a sample of the rows. Where too many concepts are silent in the first, or after all
    ``net.silence_watch`` steps, it is so to the end, from weights that are those of the start.
    Over ``net.relative_start`` steps the size of a sample comes to count where samples share
    codes or have codes above thresholds.

    Parameters
    ----------
    net : SAENet
    data : RowBatches
        The training rows.
    """
    module, step = net.module_, net.n_steps_
    if net.silence_watch and step <= net.silence_watch and not module.keeps_apart:
        _watch(net, data)
    else:
        net.start_ = None
    own = step < net.topk_start or (module.keeps_apart and net.silence_watch > 0)
    if module.per_sample and not own:
        module.eval()
        batches = sample_batches(len(data), net.batch_size, net.seed)
        module.finish(data.take(index) / module.input_scale for index in batches)
        module.train()
    module.per_sample = own
    module.n_own_steps += own
    module.relative = 1 - ramp(step, net.relative_start)
    module.k_scale = 1 + (_K_START - 1) * (1 - ramp(step, net.k_anneal))
    share = 0.0 if own else ramp(step - net.topk_start, net.sparsity_warmup)
    net.criterion_.warmup = share


def _watch(net, data: RowBatches) -> None:
    """Begin anew, each sample with its own codes, if too many concepts are silent.

    Those that took all codes before would be ahead of the others otherwise. More may be silent
    before the end of the watch, as the auxiliary loss soon revives many.
    """
    module, step = net.module_, net.n_steps_
    if step == 0:
        net.start_ = {k: v.to("cpu", copy=True) for k, v in module.state_dict().items()}
    is_last = step == net.silence_watch
    if step % _LOOK_EVERY and not is_last:
        return
    most = module.most_silent_at_last if is_last else module.most_silent
    start, too_many = net.start_, _silent_share(module) > most
    if too_many or is_last:
        net.start_ = None
    if not too_many:
        return
    module.keeps_apart = True
    if net.sort_at is not None:  # after the same share of the steps that are left
        left = 1 - step / (net.max_epochs * len(BatchIterator(data, net.batch_size)))
        net.sort_at = step + max(1, round(net.sort_at * left))
    if start is not None:  # none, where a fit goes on or another optimizer took over
        module.load_state_dict(start)
        module.dead_concepts = module.dead_concepts[:0]
        net.optimizer_.state.clear()
        net.stored_steps_.forget()


def _silent_share(module) -> float:
    """Give the share of the concepts that were silent while the average one fired many times."""
    limit = _FIRINGS * module.nb_concepts / module.k()
    return float((module.samples_since_fired > limit).double().mean())


def sparsity_is_settled(net) -> bool:
    """Tell whether sparsity, and the order of the concepts, are what they will be at the end.

    Parameters
    ----------
    net : SAENet
        At the end of an epoch.

    Returns
    -------
    bool
    """
    module = net.module_
    if net.sort_at is not None and module.can_be_sorted and net.n_steps_ <= net.sort_at:
        return False
    if net.silence_watch and module.keeps_apart:
        return net.n_steps_ >= net.k_anneal
    start = net.relative_start if module.has_start_rows else 0
    begun = max(net.topk_start + net.sparsity_warmup, net.k_anneal, start)
    if module.per_sample or net.n_steps_ < begun or net.n_steps_ <= net.silence_watch:
        return False
    target = net.criterion_.target_l0
    return target is None or abs(net.history[-1]["l0"] / target - 1) < _NEAR_TARGET
