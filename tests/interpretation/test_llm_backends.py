"""Language models that are really asked: one on this machine, one behind a real HTTP server."""

import copy
import gc
import json
import pickle
import sys
import threading
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from sksae.interpretation import LLMError, LLMLabels, OpenAILLM, TransformersLLM
from sksae.interpretation._llm_prompts import clean_label

KEY = "sk-not-to-be-seen-0123456789"
CHAT = [{"role": "system", "content": "Name it."}, {"role": "user", "content": "Example 1: ship"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
CODES = np.eye(6)
UNITS = ["sea", "ship", "blue", "rock", "sand", "fish"]


# --- a server that answers, fails, stalls and talks rubbish


def completion(content):
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    return 200, json.dumps(body)


def unit_of(body):
    """Give the unit of the first example."""
    return body["messages"][1]["content"].split()[2]


def first_unit(body):
    return completion(f"names like {unit_of(body)}")


class Server(ThreadingHTTPServer):
    """Gives what ``answer`` makes of a request, and counts the requests."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.requests, self.keys = answer, [], []
        self.running, self.most, self.lock = 0, 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Say nothing of clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.keys.append(self.headers["Authorization"])
            server.running += 1
            server.most = max(server.most, server.running)
        status, text = server.answer(body)
        with server.lock:
            server.running -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "5")  # so that the tests do not wait
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Write no log."""


@contextmanager
def serving(answer):
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def key(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("SKSAE_TEST_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ALL_PROXY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def client(server, **params):
    return OpenAILLM("m", base_url=server.url, api_key_env="SKSAE_TEST_KEY", **params)


def test_an_endpoint_answers(key):
    with serving(first_unit) as server:
        llm = client(server, request_params={"temperature": 0, "max_tokens": 9})
        step = LLMLabels(llm, k_examples=1).fit(CODES, units=UNITS)
        assert llm(CHAT) == "names like ship"
    assert step.interpretations_ == {i: f"names like {u}" for i, u in enumerate(UNITS)}
    asked = step.prompts(CODES, units=UNITS)
    sent = sorted(server.requests[:6], key=lambda body: UNITS.index(unit_of(body)))
    assert [body["messages"] for body in sent] == list(asked.values())
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in sent} == {("m", 0, 9)}
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_failures_that_pass_are_retried(key):
    status = iter([500, 429])

    def answer(body):
        failing = next(status, None)
        return (failing, '{"error": {"message": "busy"}}') if failing else first_unit(body)

    with serving(answer) as server:
        step = LLMLabels(client(server, max_retries=2)).fit(CODES[:1, :1], units=["sea"])
    assert step.interpretations_ == {0: "names like sea"}
    assert len(server.requests) == 3


def test_an_endpoint_that_stays_down_is_named_with_the_concept(key):
    def answer(body):
        down = "rock" in body["messages"][1]["content"]
        return (500, f'{{"error": {{"message": "down, {KEY}"}}}}') if down else first_unit(body)

    with serving(answer) as server:
        step = LLMLabels(client(server, max_retries=1, max_concurrency=1))
        with pytest.raises(LLMError) as error:
            step.fit(CODES, units=UNITS)
    said, _, rest = str(error.value).partition(". Labelled")
    assert said.startswith(
        f"The 'llm' of LLMLabels failed on concept 3: The model 'm' at {server.url}/ gave no "
        "answer (max_retries=1): Error code: 500 - "
    )
    assert "down, ***" in said
    assert rest == (
        " so far: 3 of 6. interpretations_ keeps them, and fit with warm_start=True asks only "
        "about the others."
    )
    assert error.value.labels == {i: f"names like {UNITS[i]}" for i in range(3)}
    assert KEY not in "".join(traceback.format_exception(error.value))
    inner = error.value.__cause__
    assert inner.__cause__ is None and inner.__context__ is None  # nor in what is not shown
    assert len(server.requests) == 3 + 2
    with serving(first_unit) as server:
        step.set_params(llm=client(server), warm_start=True).fit(CODES, units=UNITS)
    assert step.interpretations_ == {i: f"names like {u}" for i, u in enumerate(UNITS)}
    assert len(server.requests) == 3


def test_what_will_not_pass_is_not_retried(key):
    with serving(lambda body: (401, '{"error": {"message": "wrong key"}}')) as server:
        with pytest.raises(LLMError, match="Error code: 401 - .*wrong key"):
            client(server)(CHAT)
    assert len(server.requests) == 1


def test_a_server_that_stalls(key):
    release = threading.Event()

    def answer(body):
        if "ship" in body["messages"][1]["content"]:
            release.wait(20)
        return first_unit(body)

    with serving(answer) as server:
        try:
            step = LLMLabels(client(server, timeout=0.3, max_retries=0), on_error="warn")
            with pytest.warns(UserWarning) as caught:
                step.fit(CODES, units=UNITS)
        finally:
            release.set()
    assert [str(w.message) for w in caught] == [
        "The 'llm' of LLMLabels failed on concept 1, the first time with: The model 'm' at "
        f"{server.url}/ gave no answer (max_retries=0): Request timed out. Without a label: "
        "concept 1. fit with warm_start=True asks about them again."
    ]
    expected = {i: f"names like {u}" for i, u in enumerate(UNITS)}
    assert step.interpretations_ == {**expected, 1: "(no answer)"}


def test_nobody_at_the_address(key):
    with serving(first_unit) as server:
        pass
    with pytest.raises(LLMError, match=rf"^The model 'm' at {server.url}/ gave no answer .*: Conn"):
        client(server, max_retries=0)(CHAT)


NO_MESSAGE = "answered with something else than a chat completion with a message"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>Welcome", r"gave no answer \(max_retries=5\): "),
        ("", r"gave no answer \(max_retries=5\): "),
        ("{}", NO_MESSAGE),
        ("[]", NO_MESSAGE),
        ("null", NO_MESSAGE),
        ('"rivers"', NO_MESSAGE),
        ('{"choices": []}', NO_MESSAGE),
        ('{"choices": null}', NO_MESSAGE),
        ('{"choices": [{"message": null}]}', NO_MESSAGE),
        ('{"choices": [{"message": {"content": 3}}]}', NO_MESSAGE),
        ('{"choices": "rivers"}', NO_MESSAGE),
    ],
)
def test_rubbish_is_an_error_that_names_the_endpoint(key, text, message):
    with serving(lambda body: (200, text)) as server:
        with pytest.raises(LLMError, match=rf"^The model 'm' at {server.url}/ {message}"):
            client(server)(CHAT)


def test_a_message_without_text_is_no_answer(key):
    with serving(lambda body: completion(None)) as server:
        with pytest.warns(UserWarning, match="said nothing usable about concept 0"):
            step = LLMLabels(client(server)).fit([[1.0]], units=["sea"])
    assert step.interpretations_ == {0: "(no answer)"}


def test_requests_at_once_are_limited(key):
    meeting = threading.Barrier(3)

    def answer(body):
        meeting.wait(20)  # passes only where three are here at once
        return first_unit(body)

    with serving(answer) as server:
        step = LLMLabels(client(server, max_concurrency=3)).fit(CODES, units=UNITS)
    assert server.most == 3
    assert step.interpretations_ == {i: f"names like {u}" for i, u in enumerate(UNITS)}


def test_the_key_is_in_no_pickle_and_no_repr(key):
    with serving(first_unit) as server:
        step = LLMLabels(client(server), k_examples=1).fit(CODES, units=UNITS)
        pipe = Pipeline([("labels", step)])
        for shown in (repr(step.llm), repr(pipe), pipe._repr_html_(), str(vars(step.llm))):
            assert KEY not in shown
        stored = pickle.dumps(pipe)
        assert KEY.encode() not in stored
        assert len(stored) < 5000
        back = pickle.loads(stored)[0]
        assert back.llm(CHAT).startswith("names like")
    assert repr(back.llm) == f"OpenAILLM('m', base_url='{server.url}')"
    assert copy.deepcopy(step.llm) is step.llm is clone(step).llm is clone(step.llm)


def test_a_key_that_no_header_can_hold_is_not_shown(key, monkeypatch):
    with serving(first_unit) as server:
        for around in (f"{KEY}\n", f" {KEY}\r\n"):  # as files of keys end
            monkeypatch.setenv("SKSAE_TEST_KEY", around)
            assert client(server)(CHAT).startswith("names like")
        assert set(server.keys) == {f"Bearer {KEY}"}
        for wrong in (f"{KEY}\nexport", f"{KEY}…"):
            monkeypatch.setenv("SKSAE_TEST_KEY", wrong)
            with pytest.raises(ValueError) as error:
                client(server)(CHAT)
            assert str(error.value) == (
                "The environment variable 'SKSAE_TEST_KEY' holds characters that no key for "
                "OpenAILLM may have. Copy the key anew, in one line."
            )
            assert KEY not in "".join(traceback.format_exception(error.value))


def test_the_key_is_read_when_the_model_is_asked(key, monkeypatch):
    with serving(first_unit) as server:
        llm = client(server)
        monkeypatch.setenv("SKSAE_TEST_KEY", "another")
        llm(CHAT)
        monkeypatch.delenv("SKSAE_TEST_KEY")
        with pytest.raises(ValueError) as error:
            LLMLabels(llm).fit(CODES, units=UNITS)
        OpenAILLM("m", base_url=server.url, api_key_env=None)(CHAT)
    assert str(error.value) == (
        "The environment variable 'SKSAE_TEST_KEY' holds no key for OpenAILLM. Set it, name "
        "another one in api_key_env=, or pass api_key_env=None for a server that wants no key."
    )
    assert server.keys == ["Bearer another", "Bearer no-key-is-needed"]


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("model", 3),
        ("base_url", 1),
        ("api_key_env", 0),
        ("timeout", 0),
        ("max_retries", -1),
        ("max_concurrency", 0),
        ("request_params", "x"),
    ],
)
def test_settings_of_an_endpoint_that_are_wrong(parameter, wrong):
    with pytest.raises(ValueError, match=rf"^The '{parameter}' parameter of OpenAILLM must be"):
        OpenAILLM(**{"model": "m", parameter: wrong})


def test_an_address_with_a_password_is_refused(key, monkeypatch):
    address = "http://me:secret@localhost/v1"
    message = (
        "The {} of OpenAILLM must hold no user name or password. Put the key into an environment "
        "variable and name that in api_key_env=."
    )
    with pytest.raises(ValueError) as error:
        OpenAILLM("m", base_url=address)
    assert str(error.value) == message.format("'base_url' parameter")
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(ValueError) as error:
        OpenAILLM("m", api_key_env="SKSAE_TEST_KEY")(CHAT)
    assert str(error.value) == message.format("environment variable OPENAI_BASE_URL")


def test_a_missing_client_says_what_to_install(key, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError) as error:
        OpenAILLM("m", api_key_env="SKSAE_TEST_KEY")(CHAT)
    assert str(error.value) == (
        "Missing optional dependency 'openai', needed by sksae.interpretation.OpenAILLM. "
        "Try: pip install 'sksae[llm]'."
    )


# --- a model on this machine


@pytest.fixture(scope="module")
def chat_tokenizer(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def chat_path(tiny_llama, chat_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-chat")
    tiny_llama.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return str(folder)


def greedy(model, tokenizer, text, n):
    """Take the most likely token n times, without a cache and without padding."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_a_local_model_takes_the_most_likely_tokens(tiny_llama, chat_tokenizer, chat_path):
    text = "<system>Name it.\n<user>Example 1: ship\n<assistant>"
    expected = greedy(tiny_llama, chat_tokenizer, text, 5)
    assert expected
    for llm in (
        TransformersLLM(chat_path, max_new_tokens=5),
        TransformersLLM(tiny_llama, chat_tokenizer, max_new_tokens=5),
    ):
        assert llm(CHAT) == expected


def test_questions_of_a_batch_are_answered_as_if_alone(tiny_llama, chat_tokenizer):
    answers = {}
    for size in (1, 4):
        llm = TransformersLLM(tiny_llama, chat_tokenizer, batch_size=size, max_new_tokens=6)
        with llm.session() as ask:
            chats = [[{"role": "user", "content": "sea " * n}] for n in (1, 5, 2, 7)]
            answers[size] = [a for at in range(0, 4, size) for a in ask(chats[at : at + size])]
    assert answers[1] == answers[4]
    assert len(set(answers[1])) > 1


def test_labels_of_a_local_model(tiny_llama, chat_tokenizer):
    params = {"max_new_tokens": 4, "batch_size": 4}
    llm = TransformersLLM(tiny_llama, chat_tokenizer, **params)
    step = LLMLabels(llm, k_examples=1, system_prompt="", on_error="warn")
    codes = np.c_[CODES, np.zeros(6)]
    calls = []
    ask = llm._answers
    llm._answers = lambda chats: calls.append(len(chats)) or ask(chats)
    step.fit(codes, units=UNITS)
    assert calls == [4, 2]
    assert step.interpretations_[6] is None
    assert all(isinstance(step.interpretations_[c], str) for c in range(6))


def test_a_model_object_is_shared_and_left_as_it_was(tiny_llama, chat_tokenizer):
    model = copy.deepcopy(tiny_llama).train()
    settings = copy.deepcopy(model.generation_config.to_dict())
    llm = TransformersLLM(model, chat_tokenizer, max_new_tokens=2)
    step = clone(LLMLabels(llm))
    assert step.llm is llm is copy.deepcopy(llm)
    llm(CHAT)
    assert llm.model is model
    assert all(module.training for module in model.modules())
    assert model.generation_config.to_dict() == settings
    assert repr(llm) == "TransformersLLM(<LlamaForCausalLM, 42.5K parameters>)"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_pickle_by_name_holds_no_weights(chat_path):
    llm = TransformersLLM(chat_path, max_new_tokens=3)
    answer = llm(CHAT)
    stored = pickle.dumps(llm)
    assert len(stored) < 1000
    back = pickle.loads(stored)
    assert back._held is None
    assert back(CHAT) == answer
    assert back._held[0] is llm._held[0]  # not loaded again while it is there
    assert repr(back) == f"TransformersLLM({chat_path!r})"


def test_settings_of_generation_are_passed_on(tiny_llama, chat_tokenizer):
    llm = TransformersLLM(tiny_llama, chat_tokenizer, generation_params={"max_new_tokens": 1})
    longer = TransformersLLM(tiny_llama, chat_tokenizer, max_new_tokens=9)(CHAT)
    assert len(llm(CHAT)) < len(longer)
    assert longer.startswith(llm(CHAT))


def test_a_template_without_system_messages_gets_their_text(tiny_llama, chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + TEMPLATE
    )
    expected = greedy(tiny_llama, tokenizer, "<user>Name it.\n\nExample 1: ship\n<assistant>", 4)
    assert TransformersLLM(tiny_llama, tokenizer, max_new_tokens=4)(CHAT) == expected


def test_questions_that_are_too_long_say_what_to_lower(tiny_llama, chat_tokenizer):
    llm = TransformersLLM(tiny_llama, chat_tokenizer)
    with pytest.raises(LLMError) as error:
        LLMLabels(llm).fit(CODES, units=UNITS)
    assert "exceed the 128 positions of LlamaForCausalLM. Lower k_examples or k_context." in str(
        error.value
    )


def test_models_without_what_it_takes_to_ask(tiny_llama, byte_tokenizer):
    with pytest.raises(ValueError, match=r"^\w+ has no chat template, through which Transf"):
        TransformersLLM(tiny_llama, byte_tokenizer)(CHAT)
    nameless = copy.deepcopy(tiny_llama)
    nameless.config._name_or_path = nameless.name_or_path = ""
    with pytest.raises(ValueError) as error:
        TransformersLLM(nameless)(CHAT)
    assert str(error.value) == (
        "tokenizer=None takes the tokenizer of the model's folder, and this LlamaForCausalLM names "
        "none. Pass tokenizer=."
    )
    with pytest.raises(OSError, match=r"^Cannot load the model '/nowhere'"):
        LLMLabels(TransformersLLM("/nowhere")).fit(CODES, units=UNITS)
    with pytest.raises(ValueError, match="^The 'batch_size' parameter of TransformersLLM must be"):
        TransformersLLM(tiny_llama, batch_size=0)


# --- a real language model


@pytest.fixture(scope="module")
def smollm(full_smollm_path):
    yield TransformersLLM(full_smollm_path, max_new_tokens=10, batch_size=2)
    gc.collect()


ANIMALS = ["dog", "cat", "horse", "rabbit", "cow", "sheep"]
LAW = ["police", "court", "judge", "prison", "arrested", "jail"]


@pytest.mark.real
def test_a_real_model_names_clear_concepts(smollm):
    codes = np.zeros((12, 3))
    codes[:6, 0] = codes[6:, 1] = [10, 9, 8, 7, 6, 5]
    step = LLMLabels(smollm).fit(codes, units=ANIMALS + LAW)
    assert "mammal" in step.interpretations_[0]
    assert any(word in step.interpretations_[1] for word in ("prison", "legal", "law", "court"))
    assert step.interpretations_[2] is None


@pytest.mark.real
def test_a_real_model_behind_a_server(key, smollm):
    codes = np.array([10.0, 9, 8, 7, 6, 5])[:, None]
    said = []

    def answer(body):
        said.append(smollm(body["messages"]))
        return completion(said[-1])

    with serving(answer) as server:
        step = LLMLabels(client(server)).fit(codes, units=LAW)
    assert step.interpretations_ == {0: clean_label(said[0])}
    assert len(said) == 1
    assert any(word in said[0] for word in ("prison", "legal", "law", "court"))
