#!/usr/bin/env python3
"""The rival of `caravan bench step` and `caravan bench generate`: the same work in PyTorch + transformers, same shapes.

usage: torch_peer.py [sft|dpo|generate] --model {tiny|small|base} --dtype {fp32|bf16} [--threads N] [--steps N] [--compile]
                     [--cached-reference] [--batch N]

Prints one JSON line. sft, dpo: tokens per second of the median step, peak resident memory in MiB, the last loss; bf16 means
f32 master weights with bf16 autocast, which is what trainers do. generate: new tokens per second of the median call, prompts
of 32 tokens, 64 new ones, temperature 1; bf16 means bf16 weights. Weights and tokens are random. Needs torch and
transformers.
"""
import argparse
import json
import os
import resource
import statistics
import time

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

WARM_UP_STEPS = 2


def shapes(name):
    """Model class, configuration, sequences, tokens in each, measured steps: as lib/cli/bench_shapes.ts has them."""
    if name == "tiny":
        config = LlamaConfig(vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                             tie_word_embeddings=True)
        return LlamaForCausalLM, config, 32, 128, 20
    if name == "small":
        config = LlamaConfig(vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6,
                             num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=512,
                             tie_word_embeddings=True)
        return LlamaForCausalLM, config, 8, 256, 8
    config = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                         num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=1024,
                         tie_word_embeddings=True)
    return Qwen2ForCausalLM, config, 2, 256, 3


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", nargs="?", choices=["sft", "dpo", "generate"], default="sft")
    parser.add_argument("--model", choices=["tiny", "small", "base"], default="tiny")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cached-reference", action="store_true")
    return parser.parse_args()


def answer_means(forward, ids, mask):
    """Mean log-probability of the masked tokens of each sequence."""
    logits = forward(input_ids=ids).logits[:, :-1].float()
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (logp * mask[:, 1:]).sum(-1) / mask[:, 1:].sum(-1)


def sft_loss(forward, ids, vocabulary):
    logits = forward(input_ids=ids).logits
    return functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary).float(), ids[:, 1:].reshape(-1))


def dpo_loss(forward, reference, ids):
    """Length-normalised DPO with beta 5; the first half of the rows is chosen, a quarter of each row is its prompt."""
    half = ids.shape[0] // 2
    mask = torch.ones_like(ids, dtype=torch.float32)
    mask[:, : ids.shape[1] // 4] = 0
    policy = answer_means(forward, ids, mask)
    known = torch.zeros_like(policy)
    if reference is not None:
        with torch.no_grad():
            known = answer_means(reference, ids, mask)
    gain = policy - known
    return -functional.logsigmoid(5.0 * (gain[:half] - gain[half:])).mean()


PROMPT_TOKENS, NEW_TOKENS = 32, 64


def generate(args, model, batch):
    model.eval()
    if args.dtype == "bf16":
        model = model.to(torch.bfloat16)
    times = []
    for call in range((args.steps or 3) + 1):
        ids = torch.randint(0, model.config.vocab_size, (batch, PROMPT_TOKENS))
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS,
                           min_new_tokens=NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0)
        if call > 0:
            times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(json.dumps({
        "peer": "torch",
        "version": torch.__version__,
        "mode": "generate",
        "model": args.model,
        "dtype": args.dtype,
        "batch": batch,
        "tokens_per_s": round(batch * NEW_TOKENS / median, 1),
        "call_s": round(median, 5),
    }))


def main():
    args = parse()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model_class, config, batch, length, steps = shapes(args.model)
    config._attn_implementation = "sdpa"
    model = model_class(config)
    if args.mode == "generate":
        return generate(args, model, args.batch or batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if args.compile else model
    reference = None
    if args.mode == "dpo" and not args.cached_reference:
        reference = model_class(config)
        reference.load_state_dict(model.state_dict())
        reference.eval().requires_grad_(False)
        reference = torch.compile(reference) if args.compile else reference
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16")
    times = []
    for step in range((args.steps or steps) + WARM_UP_STEPS):
        ids = torch.randint(0, config.vocab_size, (batch, length))
        start = time.perf_counter()
        with autocast:
            sft = args.mode == "sft"
            loss = sft_loss(forward, ids, config.vocab_size) if sft else dpo_loss(forward, reference, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= WARM_UP_STEPS:
            times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(json.dumps({
        "peer": "torch",
        "version": torch.__version__,
        "mode": args.mode,
        "model": args.model,
        "dtype": args.dtype,
        "compile": args.compile,
        "params": parameters,
        "batch": batch,
        "seq": length,
        "tokens_per_s": round(batch * length / median, 1),
        "step_s": round(median, 5),
        "gflops": round(6 * parameters * batch * length / median / 1e9, 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss": round(float(loss.detach()), 4),
    }))


main()
