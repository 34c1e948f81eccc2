"""What a language model to ask is, and one on this machine."""

from contextlib import contextmanager
from numbers import Integral

import torch

from .._device import resolve_device
from .._sklearn import Interval, validate_parameter_constraints
from ..activations import _loading as loading
from ..activations._layers import evaluating


class LLMError(RuntimeError):
    """Raised where a language model gave no answer.

    Parameters
    ----------
    message : str
        What happened.
    labels : dict of int to str, default=None
        The labels of the concepts that had one by then, where `LLMLabels` raises it.
    """

    def __init__(self, message, labels=None):
        super().__init__(message)
        self.labels = labels or {}


class Backend:
    """What the two have in common: settings, checked at once, that clones share.

    ``session()`` opens what a run of questions needs and gives a function from a list of
    chats to the list of their answers; that function is called by up to ``max_concurrency``
    threads at once, with up to ``batch_size`` chats.
    """

    max_concurrency = 1
    batch_size = 1

    def __call__(self, messages):
        """Answer one chat.

        Parameters
        ----------
        messages : list of dict
            With the keys role ("system", "user" or "assistant") and content.

        Returns
        -------
        answer : str
            What the model says next.
        """
        with self.session() as ask:
            return ask([messages])[0]

    def _check(self):
        checked = {name: getattr(self, name) for name in self._parameter_constraints}
        validate_parameter_constraints(self._parameter_constraints, checked, type(self).__name__)

    def __sklearn_clone__(self):
        return self

    def __deepcopy__(self, memo):
        return self


class TransformersLLM(Backend):
    """A generative transformers model on this machine, asked through its chat template.

    Parameters
    ----------
    model : str, path or transformers.PreTrainedModel
        Name or folder of a causal language model, which is loaded when it is first asked, or
        the model itself, which is neither moved nor copied. Take one that was tuned to follow
        instructions.
    tokenizer : str, path, transformers.PreTrainedTokenizerBase or None, default=None
        By default the one of the name or folder of the model.
    max_new_tokens : int, default=32
        Tokens after which an answer is cut off.
    batch_size : int, default=8
        Chats that are answered together. More is faster and takes more memory.
    device : str or torch.device, default="auto"
        Where a model given by name runs. "auto" is CUDA where there is a CUDA device.
    dtype : str or torch.dtype, default="auto"
        What a model given by name computes in. "auto" is float32 on a CPU, elsewhere what its
        weights are stored in.
    revision : str, default=None
        Branch, tag or commit of a model given by name.
    model_params, tokenizer_params : dict, default=None
        Further arguments of ``from_pretrained``.
    generation_params : dict, default=None
        Further arguments of the model's ``generate``.

    See Also
    --------
    OpenAILLM : A model behind an OpenAI-compatible endpoint.
    LLMLabels : Asks for the names of concepts.

    Notes
    -----
    Without ``generation_params`` the most likely token is taken each time, so that the same
    question in the same batch has the same answer. The rounding of float arithmetic depends on
    the batch, which rarely changes an answer; ``batch_size=1`` rules it out.

    A template that takes no system message (as Gemma's) gets its text at the start of the
    first message. By name a pickle holds no weights; a model object travels with them.

    Examples
    --------
    >>> llm = TransformersLLM("HuggingFaceTB/SmolLM2-135M-Instruct", batch_size=4)
    >>> llm
    TransformersLLM('HuggingFaceTB/SmolLM2-135M-Instruct')
    """

    _parameter_constraints: dict = {
        "max_new_tokens": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "dtype": [str, torch.dtype],
        "revision": [str, None],
        "model_params": [dict, None],
        "tokenizer_params": [dict, None],
        "generation_params": [dict, None],
    }

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        max_new_tokens=32,
        batch_size=8,
        device="auto",
        dtype="auto",
        revision=None,
        model_params=None,
        tokenizer_params=None,
        generation_params=None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.model_params = model_params
        self.tokenizer_params = tokenizer_params
        self.generation_params = generation_params
        self._held = None
        self._check()

    @contextmanager
    def session(self):
        """Load the model, once.

        Yields
        ------
        ask : callable
            Takes a list of chats, gives the list of their answers.
        """
        if self._held is None:
            self._held = self._loaded_model(), self._loaded_tokenizer()
        yield self._answers

    def _loaded_model(self):
        if not loading.is_name(self.model):
            return self.model
        device = resolve_device(self.device, type(self).__name__)
        dtype = self.dtype
        if dtype == "auto":
            dtype = torch.float32 if device.type == "cpu" else dtype
        else:
            dtype = loading.resolve_dtype(dtype)
        params = (self.revision, self.model_params, device, dtype)
        return loading.load_model(self.model, *params, "AutoModelForCausalLM")

    def _loaded_tokenizer(self):
        tokenizer = loading.find_tokenizer(
            self.tokenizer, self.model, self.revision, self.tokenizer_params
        )
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"{type(tokenizer).__name__} has no chat template, through which TransformersLLM "
                "asks. Take a model tuned to follow instructions, or set the chat_template of the "
                "tokenizer."
            )
        return tokenizer

    def _answers(self, chats):
        model, tokenizer = self._held
        texts = [_templated(tokenizer, messages) for messages in chats]
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self._check_length(max(map(len, tokens)))
        pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        generated = self._generated(model, tokens, pad)
        return [tokenizer.decode(answer, skip_special_tokens=True) for answer in generated]

    def _generated(self, model, tokens, pad):
        width = max(map(len, tokens))
        ids = torch.tensor([[pad] * (width - len(t)) + t for t in tokens], device=model.device)
        seen = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in tokens])
        params = {"do_sample": False, "max_new_tokens": self.max_new_tokens, "pad_token_id": pad}
        params.update(self.generation_params or {})
        with evaluating(model):
            try:
                return model.generate(ids, attention_mask=seen.to(ids.device), **params)[:, width:]
            except torch.OutOfMemoryError as exc:
                raise torch.OutOfMemoryError(
                    f"{len(tokens)} questions of up to {width} tokens do not fit into the memory "
                    f"of {ids.device}. Lower batch_size of TransformersLLM, or k_examples or "
                    "k_context of LLMLabels."
                ) from exc

    def _check_length(self, length):
        model = self._held[0]
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and length + self.max_new_tokens > limit:
            raise ValueError(
                f"A question of {length} tokens and an answer of up to {self.max_new_tokens} "
                f"exceed the {limit} positions of {type(model).__name__}. Lower k_examples or "
                "k_context."
            )

    def __getstate__(self):
        if isinstance(self.model, torch.nn.Module):
            loading.warn_if_heavy(self.model)
        return {**self.__dict__, "_held": None}

    def __repr__(self):
        return f"TransformersLLM({loading.brief(self.model)!r})"


def _templated(tokenizer, messages):
    from jinja2 import TemplateError

    # Templates of reasoning models skip the thoughts; the others do not know the argument.
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(messages, **settings)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        first, second, *rest = messages
        merged = {**second, "content": f"{first['content']}\n\n{second['content']}"}
        return tokenizer.apply_chat_template([merged, *rest], **settings)
