"""A study of seconds for the tests of workers: it is imported by them, as a design is."""

import functools

from data.make_data import world
from questions import make_question
from study.design import CONTROL, NEW, RETENTION, Arm, Design
from train import Settings, Task


@functools.cache
def task_for(seed, subjects, texts, judged):
    new = world(seed, subjects, texts)
    questions = {
        name: list(map(make_question, new[key][:6])) for name, key in ((NEW, "questions"), (CONTROL, "unbound"))
    }
    return Task(new["corpus"][:8], questions | {RETENTION: questions[NEW]}, {"text": new["corpus"][:2]})


TINY = Settings(rank=2, epochs=1, batch_size=4, seq_len=32)
SMALL = Design(
    model="data/base",
    arms=tuple(Arm(name, name, 1e-2, TINY, at=(5e-3, 1e-2), subjects=2, texts=2) for name in ("mica", "lora")),
    pairs=(("mica", "lora"),),
    columns={"new knowledge": (NEW, "acc")},
    task=task_for,
    score=None,
    tuning=(),
    judged=(1, 2, 3),
    text="text",
    landing=False,
    seconds=1,
)
