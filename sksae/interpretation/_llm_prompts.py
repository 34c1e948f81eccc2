"""The words that go to a language model and come back: prompts and labels."""

import json
import re

SYSTEM_PROMPT = """\
You name the concepts that were found inside a language model.
You are given pieces of text in which one concept is active, with numbers from 0 (not active) \
to 10 (most active). Where a piece is shown in context, it stands between << and >>, and the \
line below it lists the number of every piece.
Find what the pieces with high numbers have in common: a topic, a meaning, a grammatical role \
or a spelling. Be as specific as the examples allow.
Answer with one short label of at most eight words, such as "names of rivers" or "verbs in the \
past tense". Give only the label: no explanation, no list, no quotation marks."""

QUESTION = "What is the concept? Give only the label."

NO_ANSWER = "(no answer)"

_MAX_CHARACTERS = 80
_quoted = json.JSONEncoder(ensure_ascii=False).encode

# What Markdown puts around a line.
_MARKS = " \t*#-•"
_QUOTED = re.compile(r"""^["'`“”„«‘]([^"“”«»]+)["'`“”»’]\.?$""")
_LAST_STOP = re.compile(r"(?<!\W\w)\.$")  # that of "U.S." stays
_INTRODUCTION = re.compile(
    r"^(the )?(label|answer|concept)( is)?\s*:\s*|^the (label|answer|concept) is\s", re.IGNORECASE
)


def messages_of(system_prompt, examples):
    """Give the chat that asks for a label: the instructions, then the examples, numbered.

    Parameters
    ----------
    system_prompt : str
    examples : list of str
        What `plain_example` or `example_in_context` gives.
    """
    numbered = [f"Example {i}: {example}" for i, example in enumerate(examples, start=1)]
    return [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": "\n".join([*numbered, "", QUESTION])},
    ]


def plain_example(unit, importance):
    """Write a unit and its importance in one line."""
    return f"{unit} (activation: {importance})"


def example_in_context(text, units, importances):
    """Write a text with a marked unit, and below it all its units with their importance."""
    listed = (
        f"({_quoted(unit)}, {importance})"
        for unit, importance in zip(units, importances, strict=True)
    )
    return f"{text}\nActivations: {', '.join(listed)}"


def one_line(text):
    """Turn each run of white space into one space."""
    return " ".join(text.split())


def clean_label(answer):
    """Reduce an answer to its label, or to "(no answer)" where it has no letter or digit.

    That is its first line with a letter or digit, after a reasoning model's thoughts, without
    the marks around it and a "Label:" before it, cut at a word after 80 characters.
    """
    said = (answer or "").rpartition("</think>")[2]
    if "<think>" in said:  # thoughts that were cut off
        return NO_ANSWER
    lines = (_unwrapped(line) for line in said.splitlines())
    label = next((line for line in lines if any(map(str.isalnum, line))), NO_ANSWER)
    if len(label) <= _MAX_CHARACTERS:
        return label
    return label[: _MAX_CHARACTERS + 1].rsplit(maxsplit=1)[0][:_MAX_CHARACTERS] + "…"


def _unwrapped(line):
    bare = one_line(line).strip(_MARKS)
    bare = _INTRODUCTION.sub("", bare).strip(_MARKS)
    quoted = _QUOTED.match(bare)
    return _LAST_STOP.sub("", quoted[1].strip() if quoted else bare)
