"""Rewards that read the text of an answer: the known answer, a pattern, its form, repetition, and its language.

Of a conversation they read the last turn of the assistant, without the thoughts before it; a pattern, a form with a tag
for thoughts, and repetition are about the thoughts, too. Of an answer that was cut off they read what there is, so that
it lacks the end of whatever it began.
"""
