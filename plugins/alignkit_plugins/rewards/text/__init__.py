"""Rewards that read the text of an answer: the known answer, a pattern, its form, repetition, and its language.

Of a conversation they read the last turn of the assistant, without the thoughts before it; a pattern, a form with a tag
for thoughts, and repetition are about the thoughts, too. Of an answer that was cut off they read what there is, so that
it lacks the end of whatever it began.
"""

from __future__ import annotations

from alignkit import Register, hookimpl
from alignkit_plugins.rewards.text.form import Form
from alignkit_plugins.rewards.text.language import Language
from alignkit_plugins.rewards.text.matching import ExactMatch, Regex, Repetition


@hookimpl
def register_rewards(register: Register) -> None:
    register("exact_match", ExactMatch, summary="1 if an answer matches the known answer")
    register("regex", Regex, summary="1 if a pattern occurs in an answer")
    register("format", Form, summary="1 if an answer has the required form: tags, JSON, or Markdown")
    register("repetition", Repetition, summary="minus the share of an answer's n-grams that it repeats")
    register("language", Language, summary="1 if an answer is in the right language (needs py3langid)")
