"""Asking a language model about many concepts: batches, threads, and what goes wrong."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from ._llm_backends import Backend


def ask_all(llm, concepts, prompt, receive):
    """Ask about each concept.

    Parameters
    ----------
    llm : callable
        From a chat to an answer. A `Backend` is opened for all the questions, and may take
        several chats at a time (``batch_size``); one with a ``max_concurrency`` is called by so
        many threads.
    concepts : list of int
    prompt : callable
        From a concept to the chat that asks about it.
    receive : callable
        Takes a concept and its answer as soon as it is there, in any order and any thread,
        also those on their way when the caller stops.

    Yields
    ------
    (list of int, Exception or None)
        Concepts that were asked about together, and what went wrong.
    """
    size = llm.batch_size if isinstance(llm, Backend) else 1
    batches = [concepts[at : at + size] for at in range(0, len(concepts), size)]
    with _session(llm) as ask:

        def answered(batch):
            chats = [prompt(concept) for concept in batch]
            try:
                answers = ask(chats)
            except Exception as exc:
                return batch, exc
            for concept, answer in zip(batch, answers, strict=True):
                receive(concept, answer)
            return batch, None

        yield from _in_threads(answered, batches, getattr(llm, "max_concurrency", 1))


def _in_threads(function, items, n_threads):
    if n_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _session(llm):
    if isinstance(llm, Backend):
        with llm.session() as ask:
            yield ask
    else:
        yield lambda chats: [_checked(llm(messages)) for messages in chats]


def _checked(answer):
    if not isinstance(answer, str | None):
        raise TypeError(
            f"The 'llm' of LLMLabels must answer with a string. Got {type(answer).__name__}."
        )
    return answer
