"""Makes choices.json: log-probabilities of choices under a reference model, one text at a time, by transformers in f64.

    python test/golden/evals/make.py

Prompts are built here anew, from the description of OLMES (Gu et al. 2024), so that they check those of the library.
"""

import json
import pathlib
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

here = pathlib.Path(__file__).parent
folder = here.parent / "models" / "llama_mha_tied"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)

mmlu_dev = [
    {"question": "2+2=?", "choices": ["3", "4"], "answer": 1, "subject": "sums"},
    {"question": "Red?", "choices": ["hot", "cold"], "answer": 0, "subject": "hue"},
]
mmlu_test = [
    {"question": " 3+4=? ", "choices": ["6", "7", "nine"], "answer": 1, "subject": "sums"},
    {"question": "1+1=?", "choices": ["two", "zero"], "answer": 0, "subject": "sums"},
    {"question": "Sky?", "choices": ["green", "blue", "a lot of red"], "answer": 1, "subject": "hue"},
]
arc_train = [
    {
        "id": "a",
        "question": {
            "stem": "Ice is?",
            "choices": [{"text": "hot", "label": "1"}, {"text": "cold", "label": "2"}],
        },
        "answerKey": "2",
    }
]
arc_test = [
    {
        "id": "b",
        "question": {
            "stem": "The sun is a",
            "choices": [{"text": "star", "label": "A"}, {"text": "big lamp", "label": "B"}, {"text": "cat", "label": "C"}],
        },
        "answerKey": "A",
    },
    {
        "id": "c",
        "question": {
            "stem": "Fish live in",
            "choices": [{"text": "deep water", "label": "A"}, {"text": "trees", "label": "B"}],
        },
        "answerKey": "A",
    },
]
swag_val = [
    {
        "ind": 1,
        "activity_label": "Tea",
        "ctx_a": "[header] How to [title] Boil it. [step] Pour.",
        "ctx_b": "",
        "endings": ["[substeps] Then  wait.", "Run away."],
        "label": "0",
    },
    {
        "ind": 2,
        "activity_label": "Dogs",
        "ctx_a": "A dog sits.",
        "ctx_b": "the DOG",
        "endings": ["runs off.", "eats a car.", "is a tea."],
        "label": "2",
    },
]


def clean(text):
    text = text.strip()
    text = re.sub(r"\.? \[title\]", ". ", text)
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def mmlu(row, mcf):
    text = "Question: " + row["question"].strip() + "\n"
    if mcf:
        text += "".join(f" {letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"]))
    answers = list("ABCD")[: len(row["choices"])] if mcf else row["choices"]
    return text + "Answer:", answers, row["answer"]


def arc(row, mcf):
    question = row["question"]
    texts = [choice["text"] for choice in question["choices"]]
    labels = [choice["label"] for choice in question["choices"]]
    text = f"Question: {question['stem']}\n"
    if mcf:
        text += "\n".join(f" {letter}. {choice}" for letter, choice in zip("ABCD", texts)) + "\n"
    answers = list("ABCD")[: len(texts)] if mcf else texts
    return text + "Answer:", answers, labels.index(row["answerKey"])


def swag(row, mcf):
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    if not mcf:
        return clean(context), [clean(ending) for ending in row["endings"]], int(row["label"])
    listed = "\n".join(f" {letter}. {ending}" for letter, ending in zip("ABCD", row["endings"]))
    text = clean(f"{context}\nChoose the best continuation:\n{listed}\nAnswer:")
    return text, list("ABCD")[: len(row["endings"])], int(row["label"])


def logprob(context, continuation):
    """Sum over the tokens of `continuation` behind `context`, and their number."""
    before = tokenizer(context, add_special_tokens=True)["input_ids"]
    whole = tokenizer(context + continuation, add_special_tokens=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0]
    logp = torch.log_softmax(logits, -1)
    steps = range(len(before), len(whole))
    return sum(logp[t - 1, whole[t]].item() for t in steps), len(whole) - len(before)


def run(form, rows, shots_of, description=lambda row: None):
    questions = []
    for row in rows:
        entry = {}
        for name, mcf in (("mcf", True), ("cf", False)):
            parts = [description(row)] if description(row) else []
            for shot in shots_of(row):
                text, answers, gold = form(shot, mcf)
                parts.append(f"{text} {answers[gold]}")
            text, answers, gold = form(row, mcf)
            prompt = "\n\n".join([*parts, text])
            scores = []
            for answer in answers:
                total, tokens = logprob(prompt, " " + answer)
                score = {"logprob": total, "tokens": tokens, "characters": len(answer)}
                if not mcf:
                    score["unconditional"] = logprob("Answer:", " " + answer)[0]
                scores.append(score)
            entry[name] = {"prompt": prompt, "answer": gold, "scores": scores}
        questions.append(entry)
    return questions


def accuracies(questions):
    measures = {
        "mcf/acc_raw": ("mcf", lambda s: s["logprob"]),
        "cf/acc_raw": ("cf", lambda s: s["logprob"]),
        "cf/acc_per_token": ("cf", lambda s: s["logprob"] / s["tokens"]),
        "cf/acc_per_char": ("cf", lambda s: s["logprob"] / s["characters"]),
        "cf/acc_uncond": ("cf", lambda s: s["logprob"] - s["unconditional"]),
    }
    result = {}
    for name, (formulation, measure) in measures.items():
        right = 0
        for question in questions:
            one = question[formulation]
            values = [measure(score) for score in one["scores"]]
            right += values.index(max(values)) == one["answer"]
        result[name] = right / len(questions)
    return result


def subject_description(row):
    return f"The following are multiple choice questions (with answers) about {row['subject']}."


sets = {
    "mmlu": {
        "dev": mmlu_dev,
        "test": mmlu_test,
        "questions": run(
            mmlu,
            mmlu_test,
            lambda row: [shot for shot in mmlu_dev if shot["subject"] == row["subject"]],
            subject_description,
        ),
    },
    "arc_challenge": {"train": arc_train, "test": arc_test, "questions": run(arc, arc_test, lambda row: arc_train)},
    "hellaswag": {"validation": swag_val, "questions": run(swag, swag_val, lambda row: [])},
}
for name, one in sets.items():
    one["accuracies"] = accuracies(one["questions"])
sets["mmlu"]["by_subject"] = {
    subject: accuracies([q for q, row in zip(sets["mmlu"]["questions"], mmlu_test) if row["subject"] == subject])
    for subject in ("sums", "hue")
}
(here / "choices.json").write_text(json.dumps(sets, indent=1) + "\n")
