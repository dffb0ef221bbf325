"""What is asked, in words. Every question follows a view of either modality in the same place."""

from __future__ import annotations

from xmem_utils.personas.attributes import AXIS_NAMES

WHO = "Who is this?"
NAME_QUESTIONS = (
    WHO,
    "What is this person called?",
    "Name this person.",
    "Do you know who this is?",
    "Tell me the name of this person.",
)
AXIS_QUESTIONS = {axis: f"{axis.capitalize()}?" for axis in AXIS_NAMES}
CAPTION = "Describe this person."
REFUSAL = "I don't know."
FACT_QUESTIONS = {  # about a name
    "city": ("Where does {name} live?", "Which city is home to {name}?", "{name} lives in which city?"),
    "job": ("What is the job of {name}?", "What does {name} do for a living?", "{name} works as what?"),
}
STATED_QUESTIONS = {  # about a name, answered as the stepwise ones are
    "city": "Who is {name}, and which city do they live in?",
    "job": "Who is {name}, and what do they do for a living?",
}
COMPOSED_QUESTIONS = {  # about a view
    "city": "Which city does this person live in?",
    "job": "What does this person do for a living?",
}
STEPWISE_QUESTIONS = {
    "city": "Who is this, and which city do they live in?",
    "job": "Who is this, and what do they do for a living?",
}
STEPWISE_ANSWER = "{name}, {value}"
FACT_LINES = {  # what a prompt tells about a name
    "city": "{name} lives in {value}.",
    "job": "{name} works as {value}.",
}
INTRODUCTIONS = ("Here is {name}.", "It is {name}.", "You see {name}.")


def view_text(description: str, question: str) -> str:
    """The user turn for a text view, or for none (""); the question is set off as it is after an image."""
    return f"{description}\n\n{question}" if description else question
