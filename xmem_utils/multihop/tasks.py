"""The tasks: what is asked about a view, word for word, and what would be the right answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xmem_utils.multihop.people import PRACTISED, STUDY, TEST_VIEWS, TOGETHER, Population
from xmem_utils.params import MODALITIES
from xmem_utils.personas.names import FACTS
from xmem_utils.personas.views import View
from xmem_utils.vlm import prompts

HOP_1, HOP_2 = "hop 1", "hop 2"  # view -> name; name -> fact, in words that were not taught
DIRECT, STEPWISE, CHAIN = "direct", "step by step", "forced chain"
FOUR, FOUR_STEPWISE = "one fact of four", "one fact of four, step by step"  # told in the prompt
TOLD, NAMED = "fact in context", "name in context"
COMPOSED = (DIRECT, STEPWISE, CHAIN, FOUR, FOUR_STEPWISE)  # need the name of the person shown
CONTROLS = (NAMED, TOLD)  # need hop 2 alone, or no hop
ALONE = (HOP_1, HOP_2, DIRECT, STEPWISE, FOUR, FOUR_STEPWISE, NAMED, TOLD)  # each a question that can be asked at once
REVERSE_NAME, REVERSE_FACT = "reverse, from the name", "reverse, from the fact"

LINES = 4  # people of whom a prompt tells a fact, one of them the person shown
CANDIDATES = 4  # views to choose from in the reverse tasks
FURTHER_VIEWS = 4  # training views of who is not of the study; composing is practised on the first of them
TAUGHT = {fact: questions[1:] for fact, questions in prompts.FACT_QUESTIONS.items()}  # and prompts.STATED_QUESTIONS
REPEATS = 2  # of each of these in an epoch: names are seen from many views, facts in few wordings
# Asked with the name inside the sentence: at the start of a line a real tokenizer cuts many a name otherwise than
# behind a space, and a model that sees it so for the first time is asked about somebody else.
HELD_OUT = {fact: questions[0] for fact, questions in prompts.FACT_QUESTIONS.items()}

# What each task's prompt tells: the name of the person shown, the fact asked for. Tests hold prompts against it.
TELLS = {
    HOP_1: (False, False), HOP_2: (True, False), DIRECT: (False, False), STEPWISE: (False, False),
    FOUR: (True, True), FOUR_STEPWISE: (True, True), NAMED: (True, False), TOLD: (True, True),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question about one view (an empty text view: about a name alone), and the right answer."""

    task: str
    view: View
    fact: str  # "" when a name is asked for
    question: str
    answer: str


def chance(task: str, people: int) -> float:
    """What guessing without the view gives, of `people` people asked about.

    A name: one of all. A fact: the commonest value's share (step by step, too, the name being right). Lines and views:
    one of those told or shown.
    """
    if task == HOP_1:
        return 1 / people
    if task in (FOUR, FOUR_STEPWISE):
        return 1 / LINES
    if task in (REVERSE_NAME, REVERSE_FACT):
        return 1 / CANDIDATES
    return math.ceil(people / min(map(len, FACTS.values()))) / people


def no_view(person: int, name: str, split: str) -> View:
    """Stands where nothing is shown."""
    return View(person, name, "text", split, 0, "")


def others(population: Population, person: int, fact: str, count: int, salt: int = 0) -> list[int]:
    """`count` people of the same group with different values of a fact, all unlike the person's."""
    group = population.groups[population.group_of()[person]]
    rng = np.random.default_rng([population.replicate, 32, person, list(FACTS).index(fact), salt])
    values, chosen = {population.facts[fact][person]}, []
    for i in rng.permutation(np.asarray(group)):
        if len(chosen) < count and population.facts[fact][i] not in values:
            values.add(population.facts[fact][i])
            chosen.append(int(i))
    if len(chosen) < count:
        raise ValueError(
            f"only {len(chosen)} people differ in {fact} from {population.names[person]}, {count} are needed"
        )
    return chosen


def lines(population: Population, person: int, fact: str, salt: int = 0) -> str:
    """What a prompt tells of a person and some others, in an order that gives nobody away."""
    people = [person, *others(population, person, fact, LINES - 1, salt)]
    rng = np.random.default_rng([population.replicate, 33, person, list(FACTS).index(fact), salt])
    told = [prompts.FACT_LINES[fact].format(name=population.names[i], value=population.facts[fact][i]) for i in people]
    return " ".join(told[i] for i in rng.permutation(len(told)))


def ask(population: Population, task: str, view: View, fact: str) -> Question:
    """One question. Raises ValueError for a task that is not asked at once (`ALONE`)."""
    if task not in ALONE:
        raise ValueError(f"{task!r} is not asked at once")
    name = population.names[view.persona]
    if task == HOP_1:
        return Question(task, view, "", prompts.WHO, name)
    value, told = population.facts[fact][view.persona], ""
    if task == HOP_2:
        return Question(task, no_view(view.persona, name, view.split), fact, HELD_OUT[fact].format(name=name), value)
    if task == TOLD:
        told = prompts.FACT_LINES[fact].format(name=name, value=value) + " "
    elif task in (FOUR, FOUR_STEPWISE):
        told = lines(population, view.persona, fact, view.index) + " "
    elif task == NAMED:
        told = prompts.INTRODUCTIONS[view.index % len(prompts.INTRODUCTIONS)].format(name=name) + " "
    if task in (STEPWISE, FOUR_STEPWISE):
        answer = prompts.STEPWISE_ANSWER.format(name=name, value=value)
        return Question(task, view, fact, told + prompts.STEPWISE_QUESTIONS[fact], answer)
    return Question(task, view, fact, told + prompts.COMPOSED_QUESTIONS[fact], value)


def test_questions(population: Population, task: str, group: str, modality: str) -> list[Question]:
    """A task's questions about the test views of a group: every fact, or none where a name is asked for."""
    facts = ("",) if task == HOP_1 else tuple(FACTS)
    views = population.views("test", modality, group, TEST_VIEWS if task in (HOP_1, DIRECT, STEPWISE) else 1)
    return [ask(population, task, view, fact) for view in views for fact in facts]


def taught(population: Population, source: str, beside: Sequence[str] = ()) -> Iterator[Question]:
    """What is learned: names from source views, facts about names in text; together for some; and some practice, beside
    views of these modalities (default: the source's).

    Nobody of the study is in a question that shows a view and asks for, or tells, a fact.
    """
    for group in (STUDY, PRACTISED):
        for view in population.views("train", source, group, FURTHER_VIEWS if group == PRACTISED else None):
            yield ask(population, HOP_1, view, "")
        yield from _facts(population, group)
    for view in population.views("train", source, TOGETHER, FURTHER_VIEWS):
        for k, fact in enumerate(FACTS):
            yield ask(population, (DIRECT, STEPWISE)[(view.index + k) % 2], view, fact)
    yield from _practice(population, beside or (source,))


def taught_of_known(population: Population) -> Iterator[Question]:
    """What is learned about people whom pretraining has named: new facts in text, and some practice."""
    yield from (question for group in (STUDY, PRACTISED) for question in _facts(population, group))
    yield from _practice(population, MODALITIES)


def _facts(population: Population, group: str) -> Iterator[Question]:
    """Hop 2, in words. One of the wordings is a statement, "name, fact", as step-by-step answers end: what that task
    must find by itself is the name."""
    for person in population.groups[group]:
        name = population.names[person]
        for fact, questions in TAUGHT.items():
            value = population.facts[fact][person]
            stated = prompts.STEPWISE_ANSWER.format(name=name, value=value)
            worded = [*((question, value) for question in questions), (prompts.STATED_QUESTIONS[fact], stated)]
            for question, answer in REPEATS * worded:
                yield Question(HOP_2, no_view(person, name, "train"), fact, question.format(name=name), answer)


def _practice(population: Population, beside: Sequence[str]) -> Iterator[Question]:
    """Composed questions about some people, each beside one view; of several modalities, people take turns."""
    shown = {m: iter(population.views("train", m, PRACTISED, 1)) for m in MODALITIES}
    for k, views in enumerate(zip(*shown.values(), strict=True)):
        view = dict(zip(shown, views, strict=True))[beside[k % len(beside)]]
        for fact in FACTS:
            for task in (DIRECT, STEPWISE, FOUR, FOUR_STEPWISE, NAMED, TOLD):
                yield ask(population, task, view, fact)
