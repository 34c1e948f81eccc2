"""A progress bar over the steps of a fit."""

from skorch.callbacks import Callback


class ProgressBar(Callback):
    """Show steps done, and the last epoch's explained variance, L0 and dead fraction."""

    def __init__(self):
        self.bar_ = None

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Open the bar."""
        from tqdm.auto import tqdm

        n_batches = len(net.get_iterator(net.get_dataset(X)))
        self.bar_ = tqdm(total=net.max_epochs * n_batches, desc=net.name, unit="batch")

    def update(self):
        """Count one step."""
        if self.bar_ is not None:
            self.bar_.update()

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Show the epoch's numbers."""
        if self.bar_ is not None:
            last = net.history[-1]
            self.bar_.set_postfix(
                epoch=last["epoch"],
                EV=f"{last['explained_variance']:.3f}",
                L0=f"{last['l0']:.1f}",
                dead=f"{last['dead_fraction']:.1%}",
            )

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Close the bar."""
        if self.bar_ is not None:
            self.bar_.close()
            self.bar_ = None
