"""OpenAILLM: a language model behind an OpenAI-compatible endpoint."""

import os
from contextlib import contextmanager
from numbers import Integral, Real
from urllib.parse import urlsplit

from .._sklearn import Interval
from ._llm_backends import Backend, LLMError
from ._llm_prompts import one_line

_SHOWN_CHARACTERS = 300


class OpenAILLM(Backend):
    """A model behind an endpoint that speaks OpenAI's chat completions.

    Those are OpenAI itself, most other providers, and local servers such as those of vLLM,
    llama.cpp and Ollama.

    Parameters
    ----------
    model : str
        Name of the model, as the endpoint knows it.
    base_url : str, default=None
        Address of the endpoint, such as ``"http://localhost:8000/v1"``. By default the
        environment variable OPENAI_BASE_URL, or else OpenAI's own.
    api_key_env : str or None, default="OPENAI_API_KEY"
        Name of the environment variable that holds the key. It is read when the model is
        asked; the key itself is never stored. None for a server that wants no key.
    timeout : float, default=60.0
        Seconds without an answer after which an attempt has failed.
    max_retries : int, default=5
        Further attempts after one that failed for a reason that may pass: a timeout, a lost
        connection, the status 408, 409, 429, or 500 and above. The wait before them doubles
        from half a second to eight, unless the server says how long it should be.
    max_concurrency : int, default=4
        Largest number of questions on their way at once.
    request_params : dict, default=None
        Further fields of each request, such as ``{"temperature": 0, "seed": 0}``. They are
        pickled: no place for secrets.

    See Also
    --------
    TransformersLLM : A model on this machine, which needs no key and no server.
    LLMLabels : Asks for the names of concepts.

    Notes
    -----
    Needs the package openai, the endpoint's maintained client: ``pip install 'sksae[llm]'``.

    Examples
    --------
    >>> llm = OpenAILLM("smollm2", base_url="http://localhost:8000/v1", api_key_env=None)
    >>> llm
    OpenAILLM('smollm2', base_url='http://localhost:8000/v1')
    """

    _parameter_constraints: dict = {
        "model": [str],
        "base_url": [str, None],
        "api_key_env": [str, None],
        "timeout": [Interval(Real, 0, None, closed="neither")],
        "max_retries": [Interval(Integral, 0, None, closed="left")],
        "max_concurrency": [Interval(Integral, 1, None, closed="left")],
        "request_params": [dict, None],
    }

    def __init__(
        self,
        model,
        *,
        base_url=None,
        api_key_env="OPENAI_API_KEY",
        timeout=60.0,
        max_retries=5,
        max_concurrency=4,
        request_params=None,
    ):
        self.model = model
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.timeout = timeout
        self.max_retries = max_retries
        self.max_concurrency = max_concurrency
        self.request_params = request_params
        self._check()
        _check_address(base_url, "'base_url' parameter")

    @contextmanager
    def session(self):
        """Open a client of the endpoint, and close it at the end.

        Yields
        ------
        ask : callable
            Takes a list of chats, gives the list of their answers.
        """
        key = self._key()
        if self.base_url is None:
            _check_address(
                os.environ.get("OPENAI_BASE_URL"), "environment variable OPENAI_BASE_URL"
            )
        client = _openai().OpenAI(
            api_key=key,
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
        with client:
            yield lambda chats: [self._answer(client, key, messages) for messages in chats]

    def _key(self):
        if self.api_key_env is None:
            return "no-key-is-needed"  # the client insists on one
        key = os.environ.get(self.api_key_env, "").strip()  # files of keys end in a new line
        if not key:
            raise ValueError(
                f"The environment variable {self.api_key_env!r} holds no key for OpenAILLM. Set "
                "it, name another one in api_key_env=, or pass api_key_env=None for a server that "
                "wants no key."
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"The environment variable {self.api_key_env!r} holds characters that no key for "
                "OpenAILLM may have. Copy the key anew, in one line."
            )
        return key

    def _answer(self, client, key, messages):
        request = {**(self.request_params or {}), "model": self.model, "messages": messages}
        # Raised behind the except clauses: what the client raises may hold the key, or what an
        # endpoint sent it back in, and would stay in the chain.
        try:
            completion = client.chat.completions.create(**request)
        except (_openai().OpenAIError, ValueError) as exc:  # ValueError: an answer that is no JSON
            reason = _shown(_said(exc), key)
            failure = f"gave no answer (max_retries={self.max_retries}): {reason}"
        else:
            try:
                return _content(completion)
            except (AttributeError, IndexError, TypeError):
                failure = (
                    "answered with something else than a chat completion with a message: "
                    f"{_shown(repr(completion), key)}"
                )
        raise LLMError(f"{self._endpoint(client)} {failure}")

    def _endpoint(self, client):
        return f"The model {self.model!r} at {client.base_url}"

    def __repr__(self):
        where = "" if self.base_url is None else f", base_url={self.base_url!r}"
        return f"OpenAILLM({self.model!r}{where})"


def _check_address(address, of):
    """Refuse an address with a password, which messages would show."""
    if "@" in urlsplit(address or "").netloc:
        raise ValueError(
            f"The {of} of OpenAILLM must hold no user name or password. Put the key into an "
            "environment variable and name that in api_key_env=."
        )


def _said(error):
    """Give what an error says; of a lost connection also why it was lost."""
    said = str(error) or type(error).__name__
    lost = isinstance(error, _openai().APIConnectionError) and error.__cause__ is not None
    behind = str(error.__cause__) if lost else ""
    return f"{said} {behind}" if behind and behind not in said else said


def _shown(text, key):
    """Shorten what an endpoint sent, without the key that it may have sent back."""
    return one_line(text.replace(key, "***"))[:_SHOWN_CHARACTERS]


def _content(completion):
    """Give the text of a completion; a refusal or a call of a tool has none."""
    content = completion.choices[0].message.content
    if not isinstance(content, str | None):
        raise TypeError(f"The content of a message is a string, got {type(content).__name__}.")
    return content or ""


def _openai():
    try:
        import openai
    except ImportError as exc:
        raise ImportError(
            "Missing optional dependency 'openai', needed by sksae.interpretation.OpenAILLM. "
            "Try: pip install 'sksae[llm]'."
        ) from exc
    return openai
