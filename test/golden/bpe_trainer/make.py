"""Reference for the BPE trainer: what tokenizers' BpeTrainer learns from the texts of the other golden files.
Run from test/golden with tokenizers 0.23.2:  python bpe_trainer/make.py"""
import json
from tokenizers import Regex, Tokenizer, __version__, models, pre_tokenizers, trainers

encodings = json.load(open("tokenizers/encodings.json"))["tokenizers"]
chats = json.load(open("chat/chat.json"))["templates"]
texts = [c["text"] for t in ("tulu", "llama3", "chatml", "spm") for c in encodings[t]["cases"]]
texts += [m["content"] for t in ("tulu", "llama3", "chatml", "spm") for c in chats[t]["cases"] for m in c["messages"]]
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
cases = []
for size, special, split, least in [(700, [], HEAD % 3, 1), (420, ["<|pad|>", "<|bos|>", "<|end|>"], HEAD % 1, 2),
                                    (600, ["<|endoftext|>"], GPT2, 3), (256, [], GPT2, 1), (300, [], r"\p{L}+|5", 1)]:
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"),
                                                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tk.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, min_frequency=least, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tk.to_str())["model"]
    cases.append(dict(vocabularySize=size, specialTokens=special, splitRegex=split, minFrequency=least,
                      vocab=model["vocab"], merges=model["merges"]))
json.dump(dict(made_by=f"tokenizers {__version__}, make.py", cases=cases), open("bpe_trainer/merges.json", "w"),
          ensure_ascii=False)
