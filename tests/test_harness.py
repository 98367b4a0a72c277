"""eval_qa.py beside lm-evaluation-harness itself, on tiny random models and local files of made-up items.

    pip install -r requirements-oracles.txt && pytest -m harness

Log-likelihoods, accuracies and standard errors (which the harness estimates as we do) are the same. Where the harness
differs, on purpose or not, a test below says so: it takes the first of tied choices, and NaN for the largest number.
"""

import json
import math
import random
from collections import namedtuple
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from conftest import END_OF_TEXT, SENTENCES, gpt2_config, llama_config, transformers, write_folder

from eval_qa import encode_question, score_questions, summarise
from fast.scoring import rows_of
from gpt import load_pretrained
from gpt.tokenizer import LLAMA3_PATTERN
from questions import Question, read_question_sets, read_questions

pytestmark = pytest.mark.harness  # lm_eval is imported where it is used: this file is read by every run of pytest

BEGIN = "<|begin|>"
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
ACCURACIES = [{"metric": "acc"}, {"metric": "acc_norm"}]
# A prompt as it stands; our question format; the two benchmarks as the harness itself defines them.
OWN = {
    "output_type": "multiple_choice", "validation_split": "validation", "metric_list": ACCURACIES,
    "doc_to_text": "prompt", "doc_to_choice": "choices", "doc_to_target": "answer",
}  # fmt: skip
QUESTIONS = OWN | {"doc_to_text": "Question: {{question}}\nAnswer:"}
TRUTHFULQA = {"include": "truthfulqa/truthfulqa_mc1.yaml"}
HELLASWAG = {"include": "hellaswag/hellaswag.yaml"}

Subject = namedtuple("Subject", "model tokenizer lm")  # ours, ours, theirs with both


# --- models -----------------------------------------------------------------------------------------------------------


def trained(pattern, special, texts):
    """Byte-level BPE of 512 tokens; without a pattern, tokens reach across words, and so from a prompt into a choice."""
    tokenizer, level = tokenizers.Tokenizer(tokenizers.models.BPE()), tokenizers.pre_tokenizers.ByteLevel
    steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    steps.append(level(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    options = dict(special_tokens=special, initial_alphabet=level.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=512, **options))
    return tokenizer


def llama3_tokenizer():
    """With Llama 3's pattern, in which ":" and line breaks may be one token, and its template: texts begin with BEGIN."""
    texts = SENTENCES * 3 + ["Question:\nAnswer:\n\n"] * 9
    tokenizer = trained(LLAMA3_PATTERN, [BEGIN, END_OF_TEXT], texts)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def gluing_tokenizer():
    rng = random.Random(0)
    return trained(None, [END_OF_TEXT], [f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(2000)])


def harness_model(folder, **options):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=8, **options)


def write_sentencepiece(path):
    """As Llama 2's: every text begins with BOS and, before its first word, a space."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for sentence in SENTENCES * 3 for line in sentence.splitlines()),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )


def write_subject(folder, config, kind):
    """A model with the tokenizer of GPT-2 (kind "gpt2"), Llama 3 or Llama 2, as both programs load it."""
    write_folder(folder, config)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END_OF_TEXT}
    if kind == "llama3":
        llama3_tokenizer().save(str(folder / "tokenizer.json"))
    elif kind == "llama2":
        write_sentencepiece(folder / "tokenizer.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings |= {"add_bos_token": True, "legacy": False}
    if kind != "gpt2":
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "llama2":
        (folder / "tokenizer.json").unlink()
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # a tokenizer.json, of the model's
    return Subject(*load_pretrained(folder), harness_model(folder))


MODELS = {  # kind -> its configuration with a context of so many tokens
    "gpt2": lambda context: gpt2_config(n_positions=context),
    "llama3": lambda context: llama_config(max_position_embeddings=context),
    "llama2": lambda context: llama_config(max_position_embeddings=context, tie_word_embeddings=False),
}


@pytest.fixture(scope="module", params=MODELS)
def subject(request, tmp_path_factory):
    """With room for the benchmarks' prompts."""
    return write_subject(tmp_path_factory.mktemp(request.param), MODELS[request.param](1024), request.param)


# --- both on the same questions ---------------------------------------------------------------------------------------


def load_task(folder, task, path):
    """A task of the harness on the items of a file, one JSON object a line."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = {"data_files": {"validation": str(path)}, "cache_dir": str(folder / "cache")}
    local = {"task": "local", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": data}
    local |= {"training_split": None, "num_fewshot": 0}
    if "include" in task:
        task = {"include": str(Path(lm_eval.__file__).parent / "tasks" / task["include"])}
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "local.yaml").write_text(json.dumps(task | local))  # JSON is YAML
    return TaskManager(include_path=str(tasks), include_defaults=False).load(["local"])


def run_harness(lm, loaded):
    """(samples, results) of a task."""
    from lm_eval.evaluator import evaluate

    output = evaluate(lm=lm, task_dict=loaded)
    return sorted(output["samples"]["local"], key=lambda sample: sample["doc_id"]), output["results"]["local"]


def write_items(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def measure_both(subject, folder, questions, task=OWN, path=None):
    """(our Scores, the harness's samples, its results); path: of the items, where it is not the questions themselves."""
    if path is None:
        items = [{"prompt": q.prompt, "choices": list(q.choices), "answer": q.answer} for q in questions]
        path = write_items(folder / "items.jsonl", items)
    scores = score_questions(subject.model, subject.tokenizer, questions, batch_size=7)
    return scores, *run_harness(subject.lm, load_task(folder, task, path))


def same_numbers(questions, scores, samples):
    """Compare what both read, and how likely they find it."""
    for question, score, sample in zip(questions, scores, samples, strict=True):
        assert [tuple(pair) for pair in sample["arguments"]] == [(question.prompt, f" {c}") for c in question.choices]
        assert score.loglikelihoods == pytest.approx([log for log, _ in sample["filtered_resps"]], abs=1e-4)
        _, is_greedy = sample["filtered_resps"][question.answer]
        assert is_greedy or not score.exact  # ours must also end there


def is_close(score, question, key):
    """Whether its best two choices are nearer to each other than the two programs' rounding."""
    values = score.loglikelihoods
    if key == "acc_norm":
        values = [value / len(choice) for value, choice in zip(values, question.choices)]
    last, best = sorted(values)[-2:]
    return best - last < 2e-5


def same_answers(questions, scores, samples, results, keys=("acc", "acc_norm")):
    """Compare what counts as right, question by question, and its average with standard error."""
    summary = summarise(scores)
    for key in keys:
        assert not any(is_close(score, question, key) for score, question in zip(scores, questions)), "other seed"
        assert [getattr(score, key) for score in scores] == [sample[key] == 1 for sample in samples]
        assert 0 < summary[key] < 1  # else there is nothing to see
        assert summary[key] == pytest.approx(results[f"{key},none"])
        assert summary[key + "_se"] == pytest.approx(results[f"{key}_stderr,none"])


def check(subject, folder, questions, task=OWN, path=None, keys=("acc", "acc_norm")):
    scores, samples, results = measure_both(subject, folder, questions, task, path)
    same_numbers(questions, scores, samples)
    same_answers(questions, scores, samples, results, keys)
    return scores, samples


def some_words(rng, least, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def some_choices(rng, least=2, most=5, shortest=1, longest=6):
    """Different from each other; now and then the second begins as the first does."""
    n, choices = rng.randint(least, most), []
    while len(choices) < n:
        choice = some_words(rng, shortest, longest)
        if len(choices) == 1 and rng.random() < 0.3:
            choice = f"{choices[0]} {choice}"
        if choice not in choices:
            choices.append(choice)
    return choices


# --- the benchmarks ---------------------------------------------------------------------------------------------------


def test_truthfulqa_is_as_the_harness_has_it(subject, tmp_path):
    rng = random.Random(1)
    items, theirs = [], []
    for _ in range(20):
        question, choices = some_words(rng, 2, 12) + "?", some_choices(rng, 2, 6, longest=9)
        labels = [1] + [0] * (len(choices) - 1)  # the right one first, as in the real file
        items.append({"question": question, "mc1_targets": dict(zip(choices, labels)), "mc2_targets": {}})
        theirs.append({"question": question, "mc1_targets": {"choices": choices, "labels": labels}})
    ours = tmp_path / "mc_task.json"
    ours.write_text(json.dumps(items))
    path = write_items(tmp_path / "hub.jsonl", theirs)
    (task,) = load_task(tmp_path, TRUTHFULQA, path)["tasks"].values()
    text, end = task.doc_to_text({"question": "Who?"}), "\n\nQ: Who?\nA:"
    assert text.endswith(end)
    primer = tmp_path / "primer.txt"
    primer.write_text(text.removesuffix(end))
    sets, _ = read_question_sets([ours], primer)
    (questions,) = sets.values()
    check(subject, tmp_path, questions, TRUTHFULQA, path, keys=("acc",))


def test_hellaswag_is_as_the_harness_has_it(subject, tmp_path):
    rng = random.Random(2)
    layout = ["", "", "", " [title]", " [step]", "[header] ", "[substeps] ", "  ", " ", "[a] [b]", "\n"]

    def text(least, most):
        parts = [rng.choice(layout) + some_words(rng, 1, 5) for _ in range(rng.randint(least, most))]
        return "".join(parts) + rng.choice(layout)

    items = []
    for i in range(120):
        first, second = text(1, 5), rng.choice(["", text(1, 2)])
        item = {"ind": i, "activity_label": some_words(rng, 1, 3), "ctx_a": first, "ctx_b": second}
        item |= {"ctx": f"{first} {second}", "split": "val", "split_type": "indomain", "label": rng.randrange(4)}
        items.append(item | {"endings": [text(1, 4) for _ in range(4)], "source_id": f"made-up~{i}"})
    path = write_items(tmp_path / "hellaswag_val.jsonl", items)
    questions = read_questions(path)
    assert any(q.prompt != q.prompt.rstrip() for q in questions)  # what a removed bracket leaves
    check(subject, tmp_path, questions, HELLASWAG, path)


# --- our own format ---------------------------------------------------------------------------------------------------


def test_many_questions_from_a_file(subject, tmp_path):
    rng = random.Random(3)
    items = []
    for _ in range(300):
        choices = some_choices(rng)
        items.append({"question": some_words(rng, 1, 20), "choices": choices, "answer": rng.randrange(len(choices))})
    path = write_items(tmp_path / "items.jsonl", items)
    check(subject, tmp_path, read_questions(path), QUESTIONS, path)


@pytest.mark.parametrize("end", [" ", "   ", "\n", ":\n", ": \n\n", "\t", "\u00a0", "\u3000 "])
def test_prompts_that_end_in_spaces(subject, tmp_path, end):
    rng = random.Random(4)
    questions = [Question(some_words(rng, 1, 9) + end, tuple(some_choices(rng, 3, 4, 2)), 0) for _ in range(30)]
    check(subject, tmp_path, questions)


def test_thirteen_choices_and_choices_of_one_token(subject, tmp_path):
    rng = random.Random(5)
    encode = subject.tokenizer.encode
    singles = [word for word in WORDS if len(encode(f"and {word}")) - len(encode("and")) == 1]
    assert len(singles) >= 13
    questions = [Question(some_words(rng, 1, 9), tuple(some_choices(rng, 13, 13)), 3) for _ in range(20)]
    for n in (2, 5, 13):
        questions += [Question(some_words(rng, 1, 9), tuple(rng.sample(singles, n)), 1) for _ in range(20)]
    check(subject, tmp_path, questions)


def test_scripts_emoji_and_control_characters(subject, tmp_path):
    rng = random.Random(6)
    alphabet = "aé ßЖדगी日本👩‍👩‍👧🎉\u0301\u200b\ufeff\x00\x1c\u2028\r\n\t'\"{}%\\<|>"

    def text():
        return "x" + "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))

    questions = [Question(text(), (text(), text(), text()), rng.randrange(3)) for _ in range(80)]
    check(subject, tmp_path, questions)


def test_texts_that_spell_special_tokens(subject, tmp_path):
    rng = random.Random(7)
    questions = []
    for i in range(30):
        prompt = [END_OF_TEXT, some_words(rng, 1, 5), BEGIN, END_OF_TEXT + " "]
        prompt = [BEGIN + "Round", *prompt] if i % 2 else prompt  # a text that begins so gets no second one
        choices = [f"{choice}{special}" for choice, special in zip(some_choices(rng, 2, 2), (END_OF_TEXT, BEGIN))]
        questions.append(Question("".join(prompt), tuple(choices), i % 2))
    check(subject, tmp_path, questions)


@pytest.mark.parametrize("kind", MODELS)
def test_texts_longer_than_the_context(tmp_path, kind):
    rng = random.Random(8)
    short = write_subject(tmp_path, MODELS[kind](48), kind)
    questions = [Question(some_words(rng, 1, 40), tuple(some_choices(rng)), 0) for _ in range(150)]
    rows = [
        rows_of(0, (*encode_question(short.tokenizer, question, 48), question.answer), 48) for question in questions
    ]
    assert min(sum(len(r) == 1 for r in rows), sum(len(r) > 1 for r in rows)) > 20
    assert any(row.ends is not None for r in rows if len(r) > 1 for row in r)  # one choice fits, another does not
    check(short, tmp_path, questions)


class Wrapped:
    """A tokenizer of transformers with the interface of ours."""

    bos_id = None

    def __init__(self, tokenizer):
        self.tokenizer, self.eot_id, self.vocab_size = tokenizer, tokenizer.eos_token_id, len(tokenizer)

    def encode(self, text, bos=False):
        return self.tokenizer.encode(text)

    def token_bytes(self, token):
        return self.tokenizer.decode([token]).encode()


def test_choices_whose_first_token_reaches_into_the_prompt(tmp_path):
    folder = write_folder(tmp_path, llama_config())
    glued = transformers.PreTrainedTokenizerFast(tokenizer_object=gluing_tokenizer(), eos_token=END_OF_TEXT)
    model, _ = load_pretrained(folder)
    odd = Subject(model, Wrapped(glued), harness_model(folder, tokenizer=glued))
    rng = random.Random(9)
    questions = [Question(some_words(rng, 1, 5), tuple(some_choices(rng, 2, 5, 3)), 1) for _ in range(200)]
    moved = 0
    for question in questions:
        prompt = glued.encode(question.prompt)
        wholes = [glued.encode(f"{question.prompt} {choice}") for choice in question.choices]
        moved += any(ids[: len(prompt)] != prompt for ids in wholes)
    assert moved > 50
    check(odd, tmp_path, questions)


# --- where the harness differs ----------------------------------------------------------------------------------------


def test_of_tied_choices_the_harness_takes_the_first_and_we_none(subject, tmp_path):
    tied = [Question("The quick brown", ("fox", "fox"), answer) for answer in (0, 1)]
    scores, samples, _ = measure_both(subject, tmp_path, tied)
    same_numbers(tied, scores, samples)
    for key in ("acc", "acc_norm"):
        assert [sample[key] for sample in samples] == [1, 0]
        assert [getattr(score, key) for score in scores] == [False, False]


def test_where_merging_leaves_a_choice_no_token_the_harness_stops_and_we_go_on(tmp_path):
    llama = write_subject(tmp_path, llama_config(), "llama3")
    merging = [Question("f(x):\n", ("fox", "the quick brown fox"), 1)]  # ) : become one token with the line break
    assert len(llama.tokenizer.encode("f(x):")) == len(llama.tokenizer.encode("f(x):\n fox"))
    assert len(score_questions(llama.model, llama.tokenizer, merging)[0].loglikelihoods) == 2
    with pytest.raises(AssertionError):
        measure_both(llama, tmp_path, merging)


def test_of_nan_the_harness_takes_the_first_and_we_none(subject, tmp_path):
    broken = [Question("The quick brown", ("fox", "dog"), 0)]
    weights = [subject.model.norm.weight, subject.lm.model.get_output_embeddings().weight]
    kept = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.data.fill_(math.nan)
        scores, samples, _ = measure_both(subject, tmp_path, broken)
    finally:
        for weight, values in zip(weights, kept):
            weight.data.copy_(values)
    assert samples[0]["acc"] == 1 and not scores[0].acc
