# Makes bert/ and qwen2/: folders of classifiers with random weights as torch.onnx exports them, a WordPiece tokenizer,
# and in scores.json the logits that transformers gives for pairs of texts, each by itself and without padding.
#   python make.py      (torch 2.13.0, transformers 5.18.0, onnx 1.23.1)
import json
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

HERE = pathlib.Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = """The bridge over the river was built in 1931, and nobody remembers who paid for it. She said: "it's a good
answer!" Does the model know how to count to forty-two? It doesn't, but it tries. Paris is the capital of France; Rome,
of Italy. I can't say that this is helpful, honest or harmless. Café, naïve, Zürich. 3.14 * 2 = 6.28 (roughly)"""
PAIRS = [
    ["Is it good?", "It is."],
    [None, "nobody remembers"],
    ["", "x"],
    ["The bridge over the river", 'was built in 1931, "and" nobody paid!'],
    [None, "Café, naïve, ZÜRICH."],
    ["How to count", "forty-two " * 12],
    ["Paris " * 9, "Rome"],
    [None, "中文 and 😀 it’s"],
    ["a", "b" * 20],
    [None, ""],
    ["1", " 3.14 * 2 = 6.28\n(roughly)\n"],
]


def make_tokenizer(inputs):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=inputs,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def make_model(kind, tokenizer):
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
        id2label={0: "bad", 1: "fair", 2: "good"},
        label2id={"bad": 0, "fair": 1, "good": 2},
    )
    torch.manual_seed(3)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(num_hidden_layers=2, **sizes)).eval()
    config = Qwen2Config(num_hidden_layers=1, num_key_value_heads=1, use_cache=False, **sizes)
    return Qwen2ForSequenceClassification(config).eval()


class Logits(torch.nn.Module):
    def __init__(self, model, inputs):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *values):
        return self.model(**dict(zip(self.inputs, values))).logits


def encoded(tokenizer, inputs, *texts):
    values = tokenizer(*texts, padding=True, return_tensors="pt")
    length = values["input_ids"].shape[1]
    values["position_ids"] = torch.arange(length).expand(values["input_ids"].shape).contiguous()
    return {name: values[name] for name in inputs}


def make(kind, last_input):
    inputs = ["input_ids", "attention_mask", last_input]
    folder = HERE / kind
    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(inputs[:2] + (["token_type_ids"] if kind == "bert" else []))
    model = make_model(kind, tokenizer)
    example = encoded(tokenizer, inputs, ["a good answer", "no"], ["it is", "the river in 1931"])
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    torch.onnx.export(
        Logits(model, inputs).eval(),
        tuple(example.values()),
        folder / "model.onnx",
        input_names=inputs,
        output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    rows = []
    for prompt, completion in PAIRS:
        texts = [completion] if prompt is None else [prompt, completion]
        values = encoded(tokenizer, inputs, *[[text] for text in texts])
        with torch.no_grad():
            logits = model(**values).logits[0]
        ids = values["input_ids"][0].tolist()
        rows.append({"prompt": prompt, "completion": completion, "ids": ids, "logits": logits.tolist()})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (folder / "scores.json").write_text(f"[\n{lines}\n]\n")


make("bert", "token_type_ids")
make("qwen2", "position_ids")
